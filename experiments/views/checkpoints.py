"""Checkpoints: the list with what a retention policy would free, one checkpoint, what can be asked of it, and its exports to download."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from django import forms
from django.conf import settings
from django.contrib import messages
from django.http import FileResponse, Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import content_disposition_header
from django.views.decorators.http import require_GET, require_http_methods

from experiments.checkpoint_work import file_name
from experiments.config_table import config_rows
from experiments.models import BenchmarkScore, Checkpoint, Errand, ErrandKind
from experiments.roles import requires
from experiments.services import checkpoints as service
from experiments.services import errands
from experiments.services.checkpoint_files import EXPORTS, export_folder, exports_of, folder_of, is_there
from experiments.services.retention import Policy
from experiments.states import LIVE, JobState
from experiments.views.methods import post_from
from experiments.views.paging import page_of
from experiments.views.people import signed_in
from experiments.views.playground import playground_context
from trainer.checkpoints import MANIFEST, Manifest
from trainer.errors import ConfigError
from trainer.export import GGUF_TYPES
from trainer.model_card import base_words, is_hub_name
from trainer.tar_stream import tar_of
from trainer.vllm_server import vllm_command

SHOWN_ERRANDS = 50
VLLM_PORT = 8100
LONGEST_ID = 19
"""Digits: no row's id has as many."""
SAVE = re.compile(rf"\b(\d{{1,{LONGEST_ID - 1}}}):(\d{{1,5}})\b")
"""A save as the page of a policy names it: run and iteration."""


def get_checkpoint(checkpoint_id: int) -> Checkpoint:
    """A checkpoint with its run, or 404."""
    rows = Checkpoint.objects.select_related("iteration__run__experiment", "iteration__run__owner", "parent__iteration__run")
    return get_object_or_404(rows, pk=checkpoint_id)


def get_errand(checkpoint_id: int, errand_id: int) -> Errand:
    """What was asked of this checkpoint, or 404. The playground's questions have a page of their own."""
    rows = Errand.objects.select_related("checkpoint__iteration__run").exclude(kind=ErrandKind.ANSWER)
    return get_object_or_404(rows, pk=errand_id, checkpoint=checkpoint_id)


# One checkpoint


@require_GET
def checkpoint(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    found = get_checkpoint(checkpoint_id)
    return render(request, "checkpoint.html", {**playground_context(request, found), **_page(found), **_errands_of(found)})


@require_GET
def checkpoint_live(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    """What was asked of a checkpoint and how far it is; once nothing is live it asks no more."""
    found = get_checkpoint(checkpoint_id)
    return render(request, "_checkpoint_errands.html", _errands_of(found))


def _page(found: Checkpoint) -> dict[str, Any]:
    manifest: dict[str, Any] = found.manifest or {}
    method = manifest.get("method", "full")
    known = _manifest_of(found)
    must_merge = known is not None and known.must_merge
    usable = _merged_folder(found) if must_merge else settings.LIONWEB_DATA / found.path
    return {
        "checkpoint": found,
        "run": found.iteration.run,
        "manifest": manifest,
        "method": method,
        "base": base_words(manifest["base"]) if manifest.get("base") else "",
        "is_adapter": method != "full",
        "must_merge": must_merge,
        "needs_peft": method != "full" and not must_merge,
        "usable": usable,
        "can_push_adapter": method != "full" and is_hub_name(manifest.get("base", "")),
        "files": _files(found),
        "children": found.children.select_related("iteration__run").order_by("pk"),
        "scores": BenchmarkScore.objects.filter(iteration=found.iteration, task=""),
        "settings": config_rows([manifest.get("config") or found.iteration.run.config]),
        "gguf_types": GGUF_TYPES,
        "storage": settings.LIONWEB_STORAGE_URL,
        "llama_cpp": settings.LIONWEB_LLAMA_CPP,
        "folder": settings.LIONWEB_DATA / found.path,
        "can_delete": not found.deleted_at or _has_remains(found),
        "vllm": _vllm_command(known, usable) if known and usable else "",
    }


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """A file of a checkpoint. size: in bytes, None where it is not there."""

    name: str
    size: int | None
    sha256: str


def _files(found: Checkpoint) -> list[FileRow]:
    """The files its manifest lists, and the manifest; what the disk has of them."""
    try:
        folder = folder_of(found)
    except ConfigError:
        return []
    listed = (found.manifest or {}).get("files", {})
    names = [*sorted(listed), *([MANIFEST] if listed else [])]
    return [FileRow(name=name, size=_size(folder / name), sha256=listed.get(name, "")) for name in names if ".." not in Path(name).parts]


def _has_remains(found: Checkpoint) -> bool:
    """Whether a deletion left something of it behind."""
    try:
        return any(is_there(folder) for folder in (folder_of(found), exports_of(found.pk)))
    except ConfigError:
        return False


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _manifest_of(found: Checkpoint) -> Manifest | None:
    """The manifest its row has; None where that tells too little."""
    known = {field.name for field in fields(Manifest)}
    try:
        return Manifest(**{name: value for name, value in (found.manifest or {}).items() if name in known})
    except TypeError:
        return None


def _merged_folder(found: Checkpoint) -> Path | None:
    """The folder of its merged export, the latest; None where there is none."""
    made = found.errands.filter(kind=ErrandKind.MERGED, state=JobState.FINISHED).order_by("-pk")
    return next((export_folder(errand) for errand in made if _has_files(errand) and not errand.result.get("deleted")), None)


def _vllm_command(manifest: Manifest, usable: Path) -> str:
    """How to serve with vLLM what lies in `usable`: the checkpoint, or its merged weights where it is of no use by itself."""
    if not manifest.must_merge:
        return shlex.join(vllm_command(usable, manifest, VLLM_PORT))
    precision = manifest.config.get("student", {}).get("precision", "")
    return shlex.join(vllm_command(usable, None, VLLM_PORT, precision=precision))


def _errands_of(found: Checkpoint) -> dict[str, Any]:
    rows = found.errands.exclude(kind=ErrandKind.ANSWER).select_related("requested_by")[:SHOWN_ERRANDS]
    asked = [ErrandRow(errand) for errand in rows]
    return {"checkpoint": found, "errands": asked, "live": any(row.is_live for row in asked)}


class ErrandRow:
    """An errand as the page shows it."""

    def __init__(self, errand: Errand) -> None:
        self.errand = errand
        self.is_live = errand.state in LIVE
        finished = errand.state == JobState.FINISHED
        self.can_download = finished and errand.kind in EXPORTS and not errand.result.get("deleted")
        self.can_delete = not self.is_live and errand.kind in EXPORTS and _has_files(errand)
        self.is_sound = finished and errand.kind == ErrandKind.VERIFY and not errand.result.get("problems")

    @property
    def words(self) -> str:
        """The kind, and what of it was asked."""
        options = self.errand.options
        detail = {
            ErrandKind.GGUF: options.get("stored_as", ""),
            ErrandKind.PUSH: ", ".join(filter(None, (options.get("repo", ""), "private" if options.get("private") else "public"))),
        }.get(ErrandKind(self.errand.kind), "")
        return f"{ErrandKind(self.errand.kind).label}{f': {detail}' if detail else ''}"


def _has_files(errand: Errand) -> bool:
    """Whether an export, a half-made one or what a deletion left of it is on the disk."""
    try:
        return is_there(export_folder(errand))
    except ConfigError:
        return False


# Asking


class AskForm(forms.Form):
    """What can be asked of a checkpoint. Fields beside the kind belong to some kinds alone."""

    kind = forms.ChoiceField(choices=[choice for choice in ErrandKind.choices if choice[0] != ErrandKind.ANSWER])
    stored_as = forms.ChoiceField(choices=[(name, name) for name in GGUF_TYPES], required=False)
    repo = forms.CharField(max_length=200, required=False)
    public = forms.BooleanField(required=False)
    weights = forms.ChoiceField(choices=[("merged", "merged"), ("adapter", "adapter")], required=False)

    def options(self) -> dict[str, Any]:
        """The options of the kind that was asked for."""
        data = self.cleaned_data
        if data["kind"] == ErrandKind.GGUF:
            return {"stored_as": data["stored_as"] or GGUF_TYPES[0]}
        if data["kind"] == ErrandKind.PUSH:
            return {"repo": data["repo"].strip(), "private": not data["public"], "weights": data["weights"] or "merged"}
        return {}


@post_from("checkpoint")
@requires("member")
def checkpoint_ask(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    found, form = get_checkpoint(checkpoint_id), AskForm(request.POST)
    if not form.is_valid():
        messages.error(request, "That cannot be asked of a checkpoint: choose one of the buttons on its page.")
        return redirect("checkpoint", checkpoint_id)
    try:
        service.ask(found.pk, form.cleaned_data["kind"], by=signed_in(request), **form.options())
    except ConfigError as error:
        messages.error(request, str(error))
    else:
        messages.success(
            request, f"Asked for: {ErrandKind(form.cleaned_data['kind']).label}. How far it is stands under Exports and checks."
        )
    return redirect(reverse("checkpoint", args=[checkpoint_id]) + "#errands")


@post_from("checkpoint")
@requires("member")
def checkpoint_pin(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    found, pinned = get_checkpoint(checkpoint_id), request.POST.get("pinned") == "on"
    service.pin(found, pinned=pinned)
    messages.success(request, "Pinned: nobody and no policy deletes it." if pinned else "No longer pinned.")
    return redirect("checkpoint", checkpoint_id)


@requires("member")
@require_http_methods(["GET", "POST"])
def errand_stop(request: HttpRequest, checkpoint_id: int, errand_id: int) -> HttpResponse:
    if request.method == "POST" and errands.stop(get_errand(checkpoint_id, errand_id)):
        messages.info(request, "Stopping.")
    return redirect("checkpoint", checkpoint_id)


@requires("member")
@require_http_methods(["GET", "POST"])
def errand_delete(request: HttpRequest, checkpoint_id: int, errand_id: int) -> HttpResponse:
    """Delete the files of an export; it can be asked for again."""
    if request.method == "POST":
        errand = get_errand(checkpoint_id, errand_id)
        if errand.state in LIVE or errand.kind not in EXPORTS:
            raise Http404("There is nothing of it to delete.")
        try:
            problems = service.delete_export(errand)
        except ConfigError as error:
            messages.error(request, str(error))
        else:
            _tell(request, problems, done="" if problems else "The export was deleted.")
    return redirect("checkpoint", checkpoint_id)


def _tell(request: HttpRequest, problems: list[str], *, done: str) -> None:
    if done:
        messages.success(request, done)
    for problem in problems:
        messages.error(request, f"{problem} Mend that, then delete again.")


# Downloads


@require_GET
@requires("member")
def errand_download(request: HttpRequest, checkpoint_id: int, errand_id: int) -> HttpResponseBase:
    """An export as one file: a lone file as it is, a folder as an uncompressed tar that is made while it is read."""
    errand = get_errand(checkpoint_id, errand_id)
    if not ErrandRow(errand).can_download:
        raise Http404("There is no such export.")
    if not _has_files(errand) or not (folder := export_folder(errand)).is_dir():
        raise Http404("The files of this export are not there any more. Ask for it again.")
    if errand.kind == ErrandKind.GGUF:
        file = next((path for path in sorted(folder.iterdir()) if path.suffix == ".gguf"), None)
        if file is None:
            raise Http404("The folder of this export holds no GGUF any more. Delete it and ask for it again.")
        return FileResponse(file.open("rb"), as_attachment=True, filename=file.name, content_type="application/octet-stream")
    name = f"{file_name(errand.checkpoint)}-{errand.kind}"
    tar = tar_of(folder, name=name)
    headers = {"Content-Length": str(tar.size), "Content-Disposition": str(content_disposition_header(True, f"{name}.tar"))}
    return StreamingHttpResponse(iter(tar), content_type="application/x-tar", headers=headers)


# Retention


class PolicyForm(forms.Form):
    """A policy, as the address of the page has it."""

    keep_last = forms.IntegerField(label="Keep the last of each run", min_value=0, max_value=1000)
    keep_best = forms.ChoiceField(label="And the best by", required=False)
    saves = forms.BooleanField(label="Delete saves of finished tunings", required=False)

    def __init__(self, data: Any, *, benchmarks: list[str]) -> None:
        super().__init__(data)
        chosen = self.fields["keep_best"]
        assert isinstance(chosen, forms.ChoiceField)
        chosen.choices = [("", "no benchmark"), *((name, name.replace("_", " ")) for name in benchmarks)]

    def policy(self) -> Policy:
        data = self.cleaned_data
        return Policy(keep_last=data["keep_last"], keep_best=data["keep_best"], saves=data["saves"])


def _policy_form(data: Any) -> PolicyForm:
    benchmarks = list(BenchmarkScore.objects.order_by("benchmark").values_list("benchmark", flat=True).distinct())
    return PolicyForm(data, benchmarks=benchmarks)


@require_GET
def checkpoints(request: HttpRequest) -> HttpResponse:
    """All checkpoints, and what the policy in the address would delete; nothing is deleted here."""
    chosen = "keep_last" in request.GET
    form = _policy_form(request.GET if chosen else {"keep_last": settings.LIONWEB_KEEP_CHECKPOINTS, "saves": "on"})
    holdings = service.read_holdings()
    plan = holdings.plan(form.policy() if form.is_valid() else Policy(keep_last=None))
    rows = Checkpoint.objects.select_related("iteration__run").defer("manifest").order_by("-iteration__run", "-iteration__number")
    page = page_of(request, rows)
    going, sizes = set(plan.delete), {one.id: one.size for one in holdings.kept}
    disk = shutil.disk_usage(settings.LIONWEB_DATA)
    context = {
        "form": form,
        "chosen": chosen and form.is_valid(),
        "plan": plan,
        "page": page,
        "rows": [(row, sizes.get(row.pk), row.pk in going, plan.keep.get(row.pk, "")) for row in page],
        "shown_saves": ",".join(f"{run}:{number}" for run, number in plan.saves),
        "saves": [save for save in holdings.saves if (save.run, save.iteration) in set(plan.saves)],
        "held": sum(one.size for one in holdings.kept),
        "held_saves": sum(save.size for save in holdings.saves),
        "disk": disk,
        "data": settings.LIONWEB_DATA,
    }
    return render(request, "checkpoints.html", context)


@post_from("checkpoints")
@requires("member")
def checkpoints_free(request: HttpRequest) -> HttpResponse:
    """Delete what the policy names, and nothing that was not shown."""
    form = _policy_form(request.POST)
    ids = [int(pk) for pk in request.POST.get("ids", "").split(",") if pk.isdecimal() and len(pk) < LONGEST_ID]
    saves = {(int(run), int(number)) for run, number in SAVE.findall(request.POST.get("shown_saves", ""))}
    if not form.is_valid():
        messages.error(request, "Nothing was deleted: choose a policy first.")
        return redirect("checkpoints")
    freed = service.carry_out(form.policy(), ids=ids, saves=saves)
    _tell(request, freed.problems, done=freed.words)
    return redirect("checkpoints")


@requires("member")
@require_http_methods(["GET", "POST"])
def checkpoint_delete(request: HttpRequest, checkpoint_id: int) -> HttpResponse:
    """What will stop working, and then the deletion."""
    found = get_checkpoint(checkpoint_id)
    if request.method == "POST":
        try:
            freed = service.delete(found.pk)
        except ConfigError as error:
            messages.error(request, str(error))
        else:
            _tell(request, freed.problems, done=freed.words)
        return redirect("checkpoint", checkpoint_id)
    rows = [row for row in map(ErrandRow, found.errands.filter(kind__in=EXPORTS)) if row.can_download]
    context = {"checkpoint": found, "run": found.iteration.run, "exports": rows, "why_not": service.read_holdings().why_not(found.pk)}
    return render(request, "checkpoint_delete.html", context)
