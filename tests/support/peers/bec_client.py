"""A client of BEC that runs Python lines: bec_client.py SERVICES REPLIES.

It runs in the environment of BEC's servers, whose configuration is SERVICES. Each line of stdin is a JSON
string of Python code. The answer is a JSON object, written to the file descriptor REPLIES: the value of the
name `result`, or an error.
"""

import json
import os
import sys
import traceback

from bec_lib.client import BECClient
from bec_lib.redis_connector import RedisConnector
from bec_lib.service_config import ServiceConfig

services, replies = sys.argv[1], int(sys.argv[2])
client = BECClient(
    config=ServiceConfig(services), connector_cls=RedisConnector, forced=True, name="TestClient"
)
client.start()
names: dict[str, object] = {"client": client}
with os.fdopen(replies, "w") as answers:
    for line in sys.stdin:
        names["result"] = None
        try:
            exec(json.loads(line), names)
            answer = {"value": names["result"]}
        except BaseException as error:  # noqa: BLE001  (the test receives it)
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        print(json.dumps(answer, default=str), file=answers, flush=True)
client.shutdown()
