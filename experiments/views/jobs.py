"""The jobs of all runs, newest first."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from experiments import querysets
from experiments.states import JobState, Queue
from experiments.views.paging import page_of


@require_GET
def jobs(request: HttpRequest) -> HttpResponse:
    state, queue = request.GET.get("state", ""), request.GET.get("queue", "")
    rows = querysets.jobs_with_done().select_related("stage__iteration__run").order_by("-id")
    if state in JobState.values:
        rows = rows.filter(state=state)
    if queue in Queue.values:
        rows = rows.filter(queue=queue)
    context = {"page": page_of(request, rows), "states": JobState.values, "state": state, "queues": Queue.values, "queue": queue}
    return render(request, "jobs.html", context)
