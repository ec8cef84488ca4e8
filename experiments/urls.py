from django.urls import URLPattern, path

from experiments.views import compare, endpoints, experiments, home, instructions, jobs, launch, pools, runs

urlpatterns: list[URLPattern] = [
    path("", home.home, name="home"),
    path("live", home.home_live, name="home_live"),
    path("experiments/new", experiments.experiment_new, name="experiment_new"),
    path("experiments/<int:experiment_id>/", experiments.experiment, name="experiment"),
    path("runs/new", launch.run_new, name="run_new"),
    path("runs/<int:run_id>/", runs.run, name="run"),
    path("runs/<int:run_id>/live", runs.run_live, name="run_live"),
    path("runs/<int:run_id>/stop", runs.run_stop, name="run_stop"),
    path("runs/<int:run_id>/resume", runs.run_resume, name="run_resume"),
    path("runs/<int:run_id>/scores/<str:benchmark>/<int:number>/", runs.run_scores, name="run_scores"),
    path("runs/<int:run_id>/instructions", instructions.run_instructions, name="run_instructions"),
    path("runs/<int:run_id>/candidates", instructions.run_candidates, name="run_candidates"),
    path("instructions/<int:instruction_id>/", instructions.instruction, name="instruction"),
    path("compare", compare.compare, name="compare"),
    path("pools/", pools.pools, name="pools"),
    path("pools/import", pools.pool_import, name="pool_import"),
    path("pools/<int:pool_id>/", pools.pool, name="pool"),
    path("endpoints/", endpoints.endpoints, name="endpoints"),
    path("endpoints/new", endpoints.endpoint_new, name="endpoint_new"),
    path("endpoints/<int:endpoint_id>/edit", endpoints.endpoint_edit, name="endpoint_edit"),
    path("jobs/", jobs.jobs, name="jobs"),
]
