"""NVFLARE recipes of this package's jobs, for `SimEnv`, `PocEnv` and `ProdEnv`.

    from nvflare.recipe import SimEnv
    recipe("fedmsa", study="phantom", rounds=3).execute(SimEnv(num_clients=3))

The exported job is the one of `fedfms job build`, byte for byte. The study decides everything, so NVFLARE's methods
that change a recipe's components raise an error: change the study instead. NVFLARE's module of recipes removes
`--export` from the command line when it is imported; no command of this package imports it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe import PocEnv, ProdEnv, SimEnv
from nvflare.recipe.run import Run
from nvflare.recipe.spec import ExecEnv, Recipe

from fedfms.errors import StudyError
from fedfms.flare.job import build_job
from fedfms.flare.submit import stage
from fedfms.methods import make_method, required_updates, resolve_study, training_sites
from fedfms.study import Study


class _JobConfig(FedJobConfig):
    """Writes the job of a study instead of NVFLARE's own from Python objects, which would lose their arguments."""

    def __init__(self, study: Study, name: str) -> None:
        super().__init__(job_name=name, min_clients=required_updates(study))
        self._study = study

    def generate_job_config(self, job_root: str) -> None:
        build_job(self._study, Path(job_root) / self.job_name)


class StudyJob(FedJob):
    """The job of a study, resolved for its method.

    Attributes:
        staged: write it as `fedfms submit` sends it, without the `app/custom` folder, which sites reject as code.
    """

    def __init__(self, study: Study, name: str) -> None:
        try:
            super().__init__(name=name, min_clients=required_updates(study))
        except ValueError:
            do = "name it with letters, digits, '.', '_' and '-': recipe(..., name='...')"
            raise StudyError(f"the job cannot be named {name!r}", where="recipe", do=do) from None
        self.study = study
        self.staged = False
        self.job = _JobConfig(study, name)

    def export_job(self, job_root: str) -> None:
        """Write the job folder `job_root/NAME`."""
        if not self.staged:
            self.job.generate_job_config(job_root)
            return
        with tempfile.TemporaryDirectory(prefix="fedfms-") as folder:
            self.job.generate_job_config(folder)
            stage(Path(folder) / self.name, Path(job_root) / self.name)

    def simulator_run(
        self, workspace: str, n_clients: int | None = None, clients: list[str] | None = None,
        threads: int | None = None, gpu: str | None = None, log_config: str | None = None,
    ) -> int:  # fmt: skip
        """Run the job in NVFLARE's simulator; returns its exit code."""
        names = clients or _numbered(n_clients or 0)
        returned: int = self.job.simulator_run(
            workspace, clients=",".join(names), n_clients=len(names), threads=threads or len(names), gpu=gpu,
            log_config=log_config,
        )  # fmt: skip
        return returned

    def check_clients(self, names: Sequence[str], env: str) -> None:
        """Check that an environment's clients are the sites of the study, or enough if the study names none.

        Raises:
            StudyError: they are not.
        """
        study, needed = self.study, required_updates(self.study)
        named = [*training_sites(study), *study.held_out] if study.sites else []
        if named and sorted(names) != sorted(named):
            what = f"the environment has the clients {sorted(names)}, the study the sites {sorted(named)}"
            do = f"use {env}(num_clients={len(named)}, clients={named})"
            raise StudyError(what, where=self.name, do=do)
        training = [name for name in names if name not in study.held_out]
        if not named and len(training) < needed:
            what = f"a round needs {needed} sites that train, and the environment has {len(training)}"
            raise StudyError(what, where=self.name, do=f"use {env}(num_clients={needed + len(names) - len(training)})")

    def reject_change(self, *_: Any, **__: Any) -> NoReturn:
        """Raise an error: the job has no components of Python objects.

        Raises:
            StudyError: always.
        """
        raise StudyError(
            "a recipe of fedfms has no components to change", where=self.name,
            do="change the study: recipe(..., overrides={'KEY': VALUE})",
        )  # fmt: skip

    to = to_server = to_clients = set_app_packages = reject_change


class FedfmsRecipe(Recipe):
    """The recipe of a study.

    Args:
        study: the study, with its method.
        name: of the job; default: STUDY-METHOD.

    Raises:
        StudyError: the study is not valid for its method, or NVFLARE does not accept the name.
    """

    def __init__(self, study: Study, name: str = "") -> None:
        self.study = resolve_study(study, make_method(study.method, study.method_options))
        self._study_job = StudyJob(self.study, name or f"{study.name}-{study.method}")
        super().__init__(self._study_job)

    def process_env(self, env: ExecEnv) -> None:
        """Check the clients that an environment of this machine will start; a site of `ProdEnv` checks itself.

        Raises:
            StudyError: they are not the study's sites, or the simulator cannot use its folder.
        """
        if isinstance(env, SimEnv) and any(letter.isspace() for letter in env.workspace_root):
            what = "NVFLARE's simulator cannot use a folder with a blank in its path"
            raise StudyError(what, where=self.name, do="use SimEnv(workspace_root=...) without one")
        if isinstance(env, SimEnv | PocEnv) and not getattr(env, "project_conf_path", ""):
            self._study_job.check_clients(env.clients or _numbered(env.num_clients), type(env).__name__)

    def run(
        self, env: ExecEnv, server_exec_params: dict[str, Any] | None = None,
        client_exec_params: dict[str, Any] | None = None,
    ) -> Run:  # fmt: skip
        """Run the job in an environment; to `ProdEnv` it is sent as by `fedfms submit`."""
        self._study_job.staged = isinstance(env, ProdEnv)
        try:
            return super().run(env, server_exec_params, client_exec_params)
        finally:
            self._study_job.staged = False

    def set_per_site_config(self, config: dict[str, dict[str, Any]]) -> None:
        """As every change of components: an error."""
        self._study_job.reject_change()

    def _add_to_client_apps(self, obj: Any, clients: list[str] | None = None, **kwargs: Any) -> None:
        self._study_job.reject_change()


def _numbered(count: int) -> list[str]:
    """NVFLARE's names of clients without names."""
    return [f"site-{number}" for number in range(1, count + 1)]
