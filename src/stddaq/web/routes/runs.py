"""`/api/runs`: recent runs and their accounts."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.exceptions import HTTPException

from stddaq.text import mismatch, shown
from stddaq.web.responses import described
from stddaq.web.runs import KEPT, Runs, RunSummary


def router(runs: Runs) -> APIRouter:
    """Return the routes of `runs`."""
    routes = APIRouter(prefix="/api/runs")

    @routes.get("")
    async def get_runs(
        limit: Annotated[int, Query(ge=1, le=KEPT)] = 50,
        before: Annotated[str | None, Query(max_length=100)] = None,
    ) -> list[RunSummary]:
        """Return recent runs, the newest first; `before`: only those older than this run."""
        return [RunSummary.model_validate(account) for account in runs.recent(limit, before)]

    @routes.get("/{run_id}", response_model=dict[str, Any], responses=described(404))
    async def get_run(run_id: Annotated[str, Path(max_length=100)]) -> Any:
        """Return the whole account of a run, with at most 200 ids of each kind."""
        account = runs.of(run_id)
        if account is None:
            raise HTTPException(404, mismatch("run_id", "a recent run", shown(run_id)))
        return account

    return routes
