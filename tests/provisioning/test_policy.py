"""A site's policy, as NVFLARE's own classes read it from the kit."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvflare.apis.app_validation import AppValidationKey
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_constant import FilterKey, FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.fl_exception import UnsafeComponentError
from nvflare.apis.workspace import Workspace
from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer
from nvflare.fuel.sec.authz import AuthorizationService, AuthzContext, Person
from nvflare.private.fed.app.fl_conf import create_privacy_manager
from nvflare.private.fed.utils.app_authz import AppAuthzService
from nvflare.security.security import FLAuthorizer

from fedfms.compression import CODECS, COMPRESSIONS, layout
from fedfms.errors import StudyError
from fedfms.flare.job_validator import MAX_FILES, JobValidator
from fedfms.flare.messages import BASE
from fedfms.flare.privacy_filter import PrivacyFilter
from fedfms.provisioning.policy import (
    SCOPE,
    SERVER_CLASSES,
    SITE_CLASSES,
    allow,
    privacy_policy,
    shared_sizes,
    write_policy,
)
from fedfms.reporting.cost.traffic import shared_tensors
from fedfms.settings import SiteSettings, load_settings
from fedfms.study import Study
from fedfms.training.build import build_on_meta

from .make import REPO

JOBS = sorted(path for path in (REPO / "jobs").iterdir() if (path / "meta.json").is_file())
_DEFAULT = {
    "class_allow_list": ["nvflare.app_common.logging.job_log_streamer.JobLogStreamer"],
    "allow_log_streaming": True,
    "snapshot_persistor": {"args": {"storage": {"args": {"root_dir": "/tmp/nvflare/snapshot-storage"}}}},
    "components": [
        {"id": "job_manager", "args": {"uri_root": "/tmp/nvflare/jobs-storage"}},
        {"id": "site_log_streamer", "path": "x"},
    ],
}


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    """A site's kit with the parts of NVFLARE that the policy needs; a tensor of four bytes may leave."""
    return _kit(tmp_path / "kit", "client")


def _kit(folder: Path, kind: str) -> Path:
    for name in ("startup", "local"):
        (folder / name).mkdir(parents=True)
    (folder / "local" / "resources.json.default").write_text(json.dumps(_DEFAULT))
    write_policy(folder, kind, {"a": 4}, 16)
    return folder


def _paths(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["path"]} if isinstance(value.get("path"), str) else set()
        return own.union(*(_paths(inner) for inner in value.values()))
    return set().union(*(_paths(inner) for inner in value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_the_classes_of_every_job_are_allowed(job: Path) -> None:
    for side, allowed in (("client", SITE_CLASSES), ("server", SERVER_CLASSES)):
        named = _paths(json.loads((job / "app" / "config" / f"config_fed_{side}.json").read_text()))
        assert named <= set(allowed), side


@pytest.mark.parametrize(
    "path",
    [
        "nvflare.app_common.logging.job_log_streamer.JobLogStreamer",  # would send the job's log, which names cases
        "nvflare.app_common.np.np_trainer.NPTrainer",
        "fedfms.files.replace_folder",  # NVFLARE calls functions too
        "subprocess.Popen",
    ],
)
def test_a_class_that_is_not_on_the_allow_list_is_rejected(path: str, kit: Path) -> None:
    authorizer, workspace = ComponentPathAuthorizer(), Workspace(str(kit), "site-1")
    authorizer.authorize_component_config({"path": SITE_CLASSES[0]}, workspace=workspace)
    with pytest.raises(UnsafeComponentError, match="not in allow_list"):
        authorizer.authorize_component_config({"path": path}, workspace=workspace)


def test_no_log_of_a_site_is_streamed(kit: Path) -> None:
    resources = json.loads((kit / "local" / "resources.json").read_text())
    assert resources["allow_log_streaming"] is False
    assert "site_log_streamer" not in {one["id"] for one in resources["components"]}


def _may(role: str, right: str) -> bool:
    person = Person("person", "lead", role)
    authorized, _ = AuthorizationService.authorize(AuthzContext(user=person, submitter=person, right=right))
    return bool(authorized)


@pytest.mark.parametrize("kind", ["client", "server"])
def test_nobody_brings_code_or_reads_files_and_a_member_can_view(kind: str, tmp_path: Path) -> None:
    policy = json.loads((_kit(tmp_path / "kit", kind) / "local" / "authorization.json").read_text())
    AuthorizationService.the_authorizer = None
    assert not AuthorizationService.initialize(FLAuthorizer("org_a", policy))[1]
    try:
        for role in ("project_admin", "org_admin", "lead", "member"):
            assert not _may(role, "byoc") and not _may(role, "shell_commands") and _may(role, "view")
            allowed, reason = AppAuthzService.authorize_app_info({AppValidationKey.BYOC: True}, "p", "lead", role)
            assert (allowed, reason) == (False, "BYOC not permitted")
            assert AppAuthzService.authorize_app_info({}, "p", "lead", role)[0]
        assert [_may(role, "submit_job") for role in ("project_admin", "lead", "org_admin", "member")] == [
            True, True, False, False,
        ]  # fmt: skip
    finally:
        AuthorizationService.the_authorizer = None


def test_the_scope_applies_to_every_job_and_has_the_privacy_filter(kit: Path) -> None:
    manager = create_privacy_manager(Workspace(str(kit), "site-1"), names_only=False)
    for named in ("", None, SCOPE):
        (own,) = manager.get_scope(named).task_result_filters[FilterKey.OUT]
        assert isinstance(own, PrivacyFilter)
    assert manager.get_scope("public") is None  # a job that names another scope is rejected


def test_the_commented_settings_are_valid_when_uncommented(kit: Path) -> None:
    assert load_settings(kit) == SiteSettings()
    path = kit / "local" / "fedfms_site.yaml"
    path.write_text("".join(line[1:] if line[1:2].islower() else line for line in path.read_text().splitlines(True))
                    .replace("cuda:0", "cpu"))  # fmt: skip
    filled = load_settings(kit)
    assert filled.data_root == Path("/data/fedfms") and filled.min_cases == 10


def test_a_site_can_allow_another_job(kit: Path) -> None:
    job = REPO / "jobs" / "fedmsa"
    path, shared = kit / "local" / "privacy.json", shared_sizes([job])
    policy, noise = json.loads(path.read_text()), {"path": "a.filter.of.the.Site", "args": {}}
    policy["scopes"][0]["task_result_filters"].insert(0, noise)
    path.write_text(json.dumps(policy))
    assert shared and allow(kit, [job]) == len(shared) + 1
    (scope,) = json.loads(path.read_text())["scopes"]
    assert scope["task_result_filters"] == [
        noise,
        *privacy_policy(shared | {"a": 4})["scopes"][0]["task_result_filters"],
    ]
    with pytest.raises(StudyError, match="not a job"):
        allow(kit, [kit])


@pytest.mark.slow
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_studys_update_leaves_with_each_compression(compression: str) -> None:
    job = REPO / "jobs" / "fedmsa"
    config = json.loads((job / "app" / "config" / "config_fed_client.json").read_text())
    built = build_on_meta(Study.from_dict(config["executors"][0]["executor"]["args"]["study"]))
    forms = layout(shared_tensors(built), CODECS.get(compression))
    data = {name: np.zeros(shape, dtype) for name, (shape, dtype) in forms.items()}
    own = PrivacyFilter(**privacy_policy(shared_sizes([job]))["scopes"][0]["task_result_filters"][0]["args"])
    assert own.rejection_reason(DXO(DataKind.WEIGHT_DIFF, data=data, meta={BASE: "0f" * 16}).to_shareable()) is None
    name = next(iter(data))
    data[name] = np.zeros(data[name].size * 4 + 1)
    assert "larger" in str(own.rejection_reason(DXO(DataKind.WEIGHT_DIFF, data=data).to_shareable()))


def test_limits_of_a_job(tmp_path: Path) -> None:
    check, app = JobValidator(0.001), tmp_path / "app"
    (app / "config").mkdir(parents=True)
    (app / "config" / "a.json").write_text("{}")
    assert check.validate(str(app)) == ("", {})
    (app / "b").write_bytes(bytes(1001))
    assert "1 kB (at most 1 kB)" in check.validate(str(app))[0]
    assert JobValidator(1).validate(str(app)) == ("", {})
    (app / "c").symlink_to("/etc/hostname")
    assert "links" in JobValidator(1).validate(str(app))[0]
    (app / "c").unlink()
    for index in range(MAX_FILES):
        (app / str(index)).touch()
    assert "files" in JobValidator(1).validate(str(app))[0]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.conf", "method = ${HOME}", "files that are not JSON"),
        ("custom/a.yml", "method: ${oc.env:HOME}", "files that are not JSON"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[" * 100_000, "not valid JSON"),
        ("a.json", json.dumps({"study": [{"method": "{$HOME}"}]}), "in braces"),
        ("a.json", json.dumps({"study": {"name": "a {$HOME} b"}}), "in braces"),
        ("a.json", '{"study": {"name": "\\u007b$HOME}"}}', "in braces"),
        ("a.json", json.dumps({"{$HOME}": 1}), "in braces"),
    ],
)
def test_a_job_with_variables_of_the_environment_is_rejected(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    """NVFLARE would replace them, and a site's error message could then carry the value out."""
    app = Path(shutil.copytree(REPO / "jobs" / "fedmsa" / "app", tmp_path / "app"))
    assert JobValidator(1).validate(str(app)) == ("", {})
    (app / "config" / name).parent.mkdir(parents=True, exist_ok=True)
    (app / "config" / name).write_text(content)
    assert reason in JobValidator(1).validate(str(app))[0]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_the_jobs_of_this_package_are_accepted(job: Path, tmp_path: Path) -> None:
    app = Path(shutil.copytree(job / "app", tmp_path / "app"))
    for folder in (app, app / "config"):  # NVFLARE's signature of a submitted job
        (folder / ".__nvfl_sig.json").write_text('{"config_fed_client.json": "bm8="}')
        (folder / ".__nvfl_submitter.crt").write_text("-----BEGIN CERTIFICATE-----")
    assert JobValidator(16).validate(str(app)) == ("", {})


def test_a_job_cannot_choose_or_leave_the_data_root() -> None:
    """The study in a job has no key for a folder, and its names cannot be paths."""
    config = json.loads((REPO / "jobs" / "fedmsa" / "app" / "config" / "config_fed_client.json").read_text())
    study = config["executors"][0]["executor"]["args"]["study"]
    Study.from_dict(study)
    for data in ({"root": "/etc"}, {"data_root": "/etc"}, {"dataset": "../other"}, {"dataset": "/etc"}):
        with pytest.raises(StudyError):
            Study.from_dict(study | {"data": study["data"] | data})
    for name in ("../w.pth", "/etc/w.pth"):
        with pytest.raises(StudyError):
            Study.from_dict(study | {"model": study["model"] | {"checkpoint": name}})


def test_nvflare_finds_the_allow_list_through_the_context_of_a_job(kit: Path) -> None:
    context = FLContext()
    context.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(kit), "site-1"))
    with pytest.raises(UnsafeComponentError):
        ComponentPathAuthorizer().authorize_component_config({"path": "os.system"}, fl_ctx=context)
