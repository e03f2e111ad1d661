"""Opening the WebSocket connection to a driver."""

from __future__ import annotations

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from stddaq.client.address import authorization
from stddaq.client.errors import DriverNotAllowedError, DriverUnreachableError
from stddaq.client.status import DriverStatus, parse_status
from stddaq.client.waiting import patient_timeout
from stddaq.text import mismatch, shown_text
from stddaq.wire.default_addresses import GREETING_PATH

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 1.0
# An account lists up to several thousand image ids.
MAX_MESSAGE_BYTES = 64 * 2**20


async def open_connection(
    url: str, timeout: float, token: str | None = None
) -> tuple[ClientConnection, DriverStatus]:
    """Return a connection and the first status that came over it. Raise `DriverUnreachableError`.

    Raise `DriverNotAllowedError` if the driver demands another token.
    """
    try:
        async with patient_timeout(timeout):
            # Statuses show that the driver is alive; a proxy of the environment is never meant.
            connection = await connect(
                url.rstrip("/") + GREETING_PATH,
                proxy=None,
                additional_headers=authorization(token),
                ping_interval=None,
                max_size=MAX_MESSAGE_BYTES,
                open_timeout=None,
                close_timeout=CLOSE_TIMEOUT_S,
            )
            try:
                return connection, await _first_status(connection)
            except BaseException:
                await connection.close()
                raise
    except TimeoutError:
        raise DriverUnreachableError(
            mismatch(url, f"the status of a driver within {timeout:g} s", "none")
        ) from None
    except OSError as error:
        raise DriverUnreachableError(
            f"{url}: no driver accepts connections there ({error.strerror or error}); is it started?"
        ) from error
    except InvalidURI:
        raise DriverUnreachableError(
            mismatch("address of the driver", "ws://HOST:PORT", repr(shown_text(url)))
        ) from None
    except (InvalidHandshake, UnicodeError, ConnectionClosed) as error:
        if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
            body = (error.response.body or b"").decode(errors="replace").strip()
            reason = shown_text(body) or f"HTTP {error.response.status_code}, without a reason"
            raise DriverNotAllowedError(f"{url}: the driver refuses this client: {reason}") from error
        raise DriverUnreachableError(f"the server at {url} is not a std_daq driver ({error})") from error


async def _first_status(connection: ClientConnection) -> DriverStatus:
    while True:
        if (status := parse_status(await connection.recv())) is not None:
            return status
