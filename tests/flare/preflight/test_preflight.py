"""Each check of a preflight, passing and failing."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from fedfms.flare.job import build_job, with_checkpoint
from fedfms.flare.preflight import CHECKS, Context, Row, failed, host, preflight
from fedfms.flare.preflight import data as files
from fedfms.flare.preflight import server as way
from fedfms.provisioning.policy import allow
from fedfms.reporting.cost.traffic import shared_bytes
from fedfms.settings import ENV
from fedfms.study import PHANTOM, Study, load_study
from tests.conftest import REPO
from tests.data.make import make_site, make_study

from .make import HOST, SITE, Signed, install, kit, server, signed

WEIGHTS = b"weights that nobody reads here"
CANARY = "Doe-Jane-1970"


@dataclass
class World:
    """A site that passes all checks; each test breaks one thing."""

    root: Signed
    kit: Path
    job: Path
    data: Path
    port: int
    patch: pytest.MonkeyPatch

    def rows(self, **options: object) -> dict[str, Row]:
        context = replace(Context(self.kit, self.job, timeout_s=5), **options)  # type: ignore[arg-type]
        return {row.check: row for row in preflight(context)}

    def settings(self, **more: object) -> None:
        plain = {"data_root": str(self.data), "checkpoints": str(self.data), "device": "cpu", **more}
        (self.kit / "local" / "fedfms_site.yaml").write_text(json.dumps(plain))

    def study(self, **values: object) -> None:
        """Rebuild the job with other study values."""
        load = load_study(self.data.parent / "study.yaml", **values)
        build_job(load, self.job)

    def edit(self, name: str, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
        """Change a JSON file of the kit, or of the job if the name starts with `job/`."""
        path = self.job / name.removeprefix("job/") if name.startswith("job/") else self.kit / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def target(self, port: int, host: str = HOST) -> None:
        self.edit("startup/fed_client.json", lambda c: c["servers"][0]["service"].update(target=f"{host}:{port}"))


def _study(folder: Path) -> Study:
    raw = make_study().to_dict()
    weights = with_checkpoint(folder / "data" / "weights.pth")
    raw["model"] |= {key.removeprefix("model."): value for key, value in weights.items()}
    raw["model"] |= {"backbone": "vit_tiny", "input_px": 64}
    raw["train"] |= {"rounds": 2, "batch_size": 2}
    raw["federation"] |= {"min_cases": 1}
    (folder / "study.yaml").write_text(json.dumps(raw))
    return Study.from_dict(raw)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Signed, int]]:
    """A kit, a job, data, weights, and a server for all tests."""
    folder = tmp_path_factory.mktemp("ready")
    make_site(folder / "data", SITE)
    (folder / "data" / "weights.pth").write_bytes(WEIGHTS)
    study = _study(folder)
    build_job(study, folder / "job")
    root = signed("root", ends=3650)
    with server(folder / "server", root, signed(HOST, root)) as port:
        kit(folder / "kit", root, signed(SITE, root), port, shared_bytes(study))
        yield folder, root, port


@pytest.fixture
def world(base: tuple[Path, Signed, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv(ENV, raising=False)
    monkeypatch.setattr(
        "fedfms.flare.preflight.context.estimate", lambda *_, **__: 200_000_000
    )  # the estimate takes seconds
    for name in ("kit", "job", "data"):
        shutil.copytree(base[0] / name, tmp_path / name)
    (tmp_path / "kit").chmod(0o700)
    shutil.copy(base[0] / "study.yaml", tmp_path)
    world = World(base[1], tmp_path / "kit", tmp_path / "job", tmp_path / "data", base[2], monkeypatch)
    world.settings()
    return world


@pytest.mark.slow
def test_a_correct_site_passes_each_check(world: World) -> None:
    rows = world.rows(full=True, mbit=100.0)
    assert {name: row.state for name, row in rows.items()} == {check.name: "pass" for check in CHECKS}, rows
    assert "train 18, val 2, all 20; 20 slices read, all hashes match; label values: disc [1, 2]" in rows["data"].seen
    assert "is the study's" in rows["weights"].seen
    assert not any(row.do for row in rows.values())


def test_without_a_job_the_checks_of_a_study_are_skipped(world: World) -> None:
    assert list(world.rows(job=None)) == [check.name for check in CHECKS if not check.study]


def _closed_port(world: World) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        world.target(bound.getsockname()[1])


def _certified(world: World, name: str = SITE, **days: float) -> None:
    install(world.kit, world.root, signed(name, world.root, **days))


def _foreign_root(world: World) -> None:
    other = signed("root")
    install(world.kit, other, signed(SITE, other))


def _foreign_key(world: World) -> None:
    (world.kit / "startup" / "client.key").write_bytes(signed(SITE, world.root).key_pem)


def _manifest(world: World) -> Path:
    return world.data / "eyes" / SITE / "manifest.json"


def _other_pixels(world: World) -> None:
    path = next((world.data / "eyes" / SITE / "images").iterdir())
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(path)


def _truncate(world: World, *, images: int, most: int) -> None:
    """Truncate images outside the sample; the study skips up to `most` images."""
    world.patch.setattr(files, "_SAMPLE", 1)
    world.study(**{"data.max_unreadable_images": most})
    for path in sorted((world.data / "eyes" / SITE / "images").iterdir())[-images:]:
        path.write_bytes(path.read_bytes()[:20])


def _none_to_train_on(world: World) -> None:
    parts = {"train": (), "val": (), "all": ()}
    world.patch.setattr("fedfms.flare.preflight.context.split_items", lambda *_: (parts, "val"))


def _no_card_room(world: World) -> None:
    world.patch.setattr(torch.cuda, "device_count", lambda: 1)
    world.patch.setattr(torch.cuda, "mem_get_info", lambda _: (int(1e8), int(8e10)))
    world.settings(device="cuda:0")


def _code(world: World) -> None:
    (world.job / "app" / "custom" / "mine.py").write_text("x = 1\n")


def _another_class(world: World) -> None:
    world.edit("job/app/config/config_fed_client.json", lambda c: c["components"].append(
        {"id": "log", "path": "fedfms.files.replace_folder", "args": {}}
    ))  # fmt: skip


def _requires(world: World, needs: list[str]) -> None:
    world.patch.setattr(host.metadata, "requires", lambda _: needs)


def _free(world: World, nbytes: int) -> None:
    world.patch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=nbytes))


def _full_disk(world: World) -> None:
    world.patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))


Break = Callable[[World], object]


def _plug_in(w: World) -> None:
    def change(config: dict[str, Any]) -> None:
        config["executors"][0]["executor"]["args"]["plugins"] = {"acme": "1.2"}

    w.edit("job/app/config/config_fed_client.json", change)


FAILING: list[tuple[str, Break, str]] = [
    ("settings", lambda w: w.settings(data_rot="x"), "unknown key 'data_rot'"),
    ("settings", lambda w: w.settings(device="cuda:7"), "device 'cuda:7' does not exist"),
    ("settings", lambda w: w.settings(data_root=f"/nowhere/{CANARY}"), "data_root is not a readable folder"),
    ("settings", lambda w: w.settings(cache=str(w.data / "weights.pth" / CANARY)), "cache is not a writable folder"),
    ("kit", lambda w: (w.kit / "startup" / "sub_start.sh").write_text("rm\n"), "kit was encrypted: startup/sub"),
    ("kit", lambda w: (w.kit / "startup" / "client.key").chmod(0o640), "owner can read startup/client.key"),
    ("kit", lambda w: (w.kit / "fedfms_kit.txt").unlink(), "there is no fedfms_kit.txt"),
    ("certificate", lambda w: _certified(w, begins=-9, ends=-3), "expired; site-1: certificate -3 days left"),
    ("certificate", lambda w: _certified(w, begins=2), "not valid before"),
    ("certificate", lambda w: _certified(w, "site-2"), "the certificate is for site-2, but fed_client.json for site-1"),
    ("certificate", lambda w: install(w.kit, signed("root"), signed(SITE, w.root)), "not signed by the kit's root"),
    ("certificate", _foreign_key, "the private key does not match the certificate"),
    ("certificate", lambda w: (w.kit / "startup" / "rootCA.pem").write_text("x"), "root certificate is missing"),
    ("package", lambda w: _requires(w, ["nvflare>=2,<2.5"]), "nvflare 2."),
    ("package", lambda w: _requires(w, ["no-such-package>=1"]), "no-such-package missing (needs >=1)"),
    ("port", _closed_port, "refused"),
    ("port", lambda w: w.edit("startup/fed_client.json", lambda c: c.clear()), "the kit names no server"),
    ("TLS", _closed_port, "no connection"),
    ("TLS", _foreign_root, "the server's certificate is not signed by the kit's root"),
    ("TLS", lambda w: w.target(w.port, "127.0.0.1"), "for another name than the server's"),
    ("TLS", lambda w: install(w.kit, w.root, signed(SITE, signed("root"))), "it probably rejects this kit's"),
    ("clock", lambda w: _certified(w, begins=2), "at least 48.0 h behind"),
    ("disk", _full_disk, "kit: 0.2 GB needed, 0.0 GB free"),
    ("job", lambda w: w.study(sites=["a", "b"]), "the job names other sites, not site-1"),
    ("job", lambda w: (w.job / "app" / "more.bin").write_bytes(bytes(17_000_000)), "the job holds 17.0 MB"),
    ("job", lambda w: (w.job / "app" / "link").symlink_to("/etc"), "the job holds links"),
    ("job", _code, "the job brings code"),
    ("job", _another_class, "uses fedfms.files.replace_folder, not on the site's"),
    ("job", lambda w: (w.job / "meta.json").unlink(), "the job's meta.json: the file is missing"),
    ("job", lambda w: (w.kit / "local" / "resources.json").write_text("{"), "local/resources.json: not valid JSON"),
    ("plug-ins", _plug_in, "acme is not installed (the lead's: 1.2), not allowed here"),
    ("privacy filter", lambda w: w.study(method="fedsam"), "a tensor is not on the site's allow-list"),
    ("privacy filter", lambda w: (w.kit / "local" / "privacy.json").unlink(), "local/privacy.json: the file is"),
    ("privacy filter", lambda w: w.edit("job/meta.json", lambda m: m.update(scope="public")), "no scope 'public'"),
    ("privacy filter", lambda w: w.edit("local/privacy.json", lambda p: p["scopes"][0].update(task_result_filters=[])),
     "no fedfms privacy filter"),
    ("data", lambda w: _manifest(w).unlink(), "there is no manifest.json"),
    ("data", lambda w: shutil.rmtree(w.data / "eyes" / SITE), "there is no folder eyes/site-1"),
    ("data", lambda w: w.settings(data_root=None), "needs the data set 'eyes'"),
    ("data", lambda w: w.study(**{"data.structures": [{"name": "x", "values": [5]}]}), "has label values [5]"),
    ("data", lambda w: next((w.data / "eyes" / SITE / "labels").iterdir()).unlink(), "is missing"),
    ("data", _other_pixels, "1 of 20 checked slices are damaged"),
    ("data", _none_to_train_on, "no image to train on; train 0"),
    ("data", lambda w: _truncate(w, images=2, most=1), "2 of 20 checked slices are damaged"),
    ("weights", lambda w: (w.data / "weights.pth").unlink(), "no such file"),
    ("weights", lambda w: (w.data / "weights.pth").write_bytes(b"x"), "its SHA-256 is not the study's"),
    ("weights", lambda w: w.settings(checkpoint_sha256=["0" * 64]), "not among those that the site accepts"),
    ("weights", lambda w: w.settings(checkpoints=None), "names no checkpoint folder"),
    ("card", _no_card_room, "GB estimated, 0.1 GB of 80.0 GB free"),
    ("memory", lambda w: _free(w, 100_000_000), "0.1 GB free"),
    ("link", lambda w: w.study(**{"federation.round_timeout_s": 1}), "Mbit/s"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("check", "break_", "says"), FAILING, ids=[f"{name}-{index}" for index, (name, *_) in enumerate(FAILING)]
)
def test_a_fault_appears_in_its_row_and_hides_no_other(world: World, check: str, break_: Break, says: str) -> None:
    break_(world)
    rows = world.rows(mbit=0.1 if check == "link" else 1000.0)
    assert list(rows) == [one.name for one in CHECKS]
    assert rows[check].state == "FAIL" and check in failed(rows.values()), rows[check]
    assert says in rows[check].seen, rows[check]
    assert rows[check].do
    text = " ".join(row.seen + row.do for row in rows.values())
    for secret in (str(world.data), str(world.kit), "case0", ".png", CANARY):
        assert secret not in text, text


def test_each_check_has_a_failing_case() -> None:
    assert {name for name, *_ in FAILING} == {check.name for check in CHECKS}


WARNING: list[tuple[str, Break, str]] = [
    ("settings", lambda w: (w.kit / "local" / "fedfms_site.yaml").unlink(), "all settings are defaults"),
    ("certificate", lambda w: _certified(w, ends=29), "certificate 29 days left"),
    ("data", lambda w: w.settings(min_cases=3), "scores over fewer than 3 images are suppressed"),
    ("data", lambda w: _truncate(w, images=1, most=1), "1 of 20 checked slices are damaged and will be skipped"),
    ("job", lambda w: w.edit("local/resources.json", lambda r: r.pop("app_validator")), "no fedfms app_validator"),
    ("link", lambda w: w.study(**{"federation.straggler_timeout_s": 1}), "not measured"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "break_", "says"), WARNING, ids=lambda one: str(one)[:20])
def test_what_does_not_stop_a_study_is_a_warning(world: World, check: str, break_: Break, says: str) -> None:
    break_(world)
    row = world.rows()[check]
    assert row.state == "warn" and says in row.seen and row.do, row


def test_a_check_with_a_bug_is_a_row_without_the_errors_text(world: World) -> None:
    def broken(*_: object) -> float:
        raise KeyError(f"/data/{CANARY}")

    world.patch.setattr(way, "round_trip_s", broken)
    rows = world.rows(job=None)
    assert rows["port"].seen == "unexpected KeyError in the check" and rows["TLS"].state == "pass"


def test_the_site_can_allow_the_job_as_advised(world: World) -> None:
    world.study(method="fedsam")
    assert allow(world.kit, [world.job])
    assert world.rows()["privacy filter"].state == "pass"


def test_a_held_out_site_needs_no_training_images_and_sends_nothing(world: World) -> None:
    world.study(held_out=[SITE])
    rows = world.rows()
    assert "held-out site" in rows["privacy filter"].seen and "train 0, val 20" in rows["data"].seen
    assert not failed(rows.values())
    assert "0.00 MB up" in rows["link"].seen


def test_a_pool_needs_the_data_of_all_its_sites(world: World) -> None:
    make_site(world.data, "b")
    install(world.kit, world.root, signed("pool", world.root))
    world.study(method="msa", sites=[SITE, "b"])
    rows = world.rows(full=True)
    assert "train 36, val 4, all 40; 40 slices read" in rows["data"].seen
    assert rows["job"].state == "pass", rows["job"]


@pytest.mark.slow
def test_the_phantom_needs_no_data(world: World) -> None:
    world.settings(data_root=None)
    world.study(**{"data.dataset": PHANTOM})
    assert "built-in phantom: train" in world.rows()["data"].seen


def test_the_packages_fingerprint_covers_only_what_it_runs(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(REPO / "custom" / "fedfms", tmp_path / "elsewhere"))
    same = host.package_fingerprint(REPO / "custom" / "fedfms")
    (folder / "__pycache__").mkdir(exist_ok=True)
    (folder / "__pycache__" / "cli.cpython-311.pyc").write_bytes(b"x")
    (folder / "py.typed").unlink()
    assert host.package_fingerprint(folder) == same
    (folder / "cli.py").write_text("x = 1\n")
    assert host.package_fingerprint(folder) != same


@pytest.mark.parametrize(("ahead_s", "state"), [(0, "pass"), (5, "pass"), (-60, "warn"), (400, "FAIL"), (-7e3, "FAIL")])
def test_the_clock_is_compared_with_the_servers(world: World, tmp_path: Path, ahead_s: float, state: str) -> None:
    date = datetime.now(timezone.utc) + timedelta(seconds=ahead_s)
    with server(tmp_path / "server", world.root, signed(HOST, world.root), date=date) as port:
        world.target(port)
        assert world.rows(job=None)["clock"].state == state


@pytest.mark.parametrize(("says", "state"), [("yes", "pass"), ("no", "warn"), ("", "warn")])
def test_ntp_is_checked_if_the_server_reports_no_time(world: World, tmp_path: Path, says: str, state: str) -> None:
    world.patch.setattr(way.shutil, "which", lambda _: "timedatectl")
    world.patch.setattr(way.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=f"{says}\n"))
    with server(tmp_path / "server", world.root, signed(HOST, world.root), dated=False) as port:
        world.target(port)
        row = world.rows(job=None)["clock"]
    assert row.state == state and "the server reports no time" in row.seen


@pytest.mark.parametrize(
    ("days", "name", "plain", "says"),
    [
        ({"begins": -9, "ends": -2}, HOST, False, "the server's certificate has expired"),
        ({"begins": 2}, HOST, False, "not valid yet"),
        ({}, "site-2", False, "for another name than the server's"),
        ({}, HOST, True, "does not speak TLS"),
    ],
)
def test_an_untrusted_server_fails(
    world: World, tmp_path: Path, days: dict[str, float], name: str, plain: bool, says: str
) -> None:
    with server(tmp_path / "server", world.root, signed(name, world.root, **days), plain=plain) as port:
        world.target(port)
        rows = world.rows(job=None)
    assert rows["TLS"].state == "FAIL" and says in rows["TLS"].seen, rows["TLS"]
    assert rows["port"].state == "pass"


def test_an_accepted_certificate_may_still_be_revoked(world: World) -> None:
    assert "checks for revocation only at registration" in world.rows(job=None)["TLS"].seen


@pytest.mark.slow
def test_another_scheme_than_http_is_checked_by_handshake(world: World) -> None:
    world.edit("startup/fed_client.json", lambda c: c["servers"][0]["service"].update(scheme="tcp"))
    assert world.rows(job=None)["TLS"].state == "pass"
