"""NVFLARE recipes of this package's jobs, for `SimEnv`, `PocEnv` and `ProdEnv`.

    from nvflare.recipe import SimEnv
    recipe("fedmsa", study="phantom", rounds=3).execute(SimEnv(num_clients=3))

The exported job is the one of `fedfms job build`, byte for byte. The study decides everything, so NVFLARE's methods
that change a recipe's components raise an error: change the study instead.
"""

from pathlib import Path
from typing import Any, NoReturn

from nvflare.job_config.api import FedJob
from nvflare.job_config.fed_job_config import FedJobConfig
from nvflare.recipe.spec import Recipe

from fedfms.errors import StudyError
from fedfms.flare.job import build_job
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
    """The job of a study, resolved for its method."""

    def __init__(self, study: Study, name: str) -> None:
        super().__init__(name=name, min_clients=required_updates(study))
        self.study = study
        self.job = _JobConfig(study, name)

    def export_job(self, job_root: str) -> None:
        """Write the job folder `job_root/NAME`."""
        self.job.generate_job_config(job_root)

    def simulator_run(
        self, workspace: str, n_clients: int | None = None, clients: list[str] | None = None,
        threads: int | None = None, gpu: str | None = None, log_config: str | None = None,
    ) -> int:  # fmt: skip
        """Run the job in NVFLARE's simulator; returns its exit code.

        Raises:
            StudyError: the clients are not the study's sites.
        """
        names = clients or [f"site-{number}" for number in range(1, (n_clients or 0) + 1)]
        named = [*training_sites(self.study), *self.study.held_out] if self.study.sites else []
        if named and sorted(names) != sorted(named):
            what = f"the environment has the clients {sorted(names)}, the study the sites {sorted(named)}"
            raise StudyError(what, where=self.name, do=f"use SimEnv(clients={named})")
        returned: int = self.job.simulator_run(
            workspace, clients=",".join(names), n_clients=len(names), threads=threads or len(names), gpu=gpu,
            log_config=log_config,
        )  # fmt: skip
        return returned

    def _reject(self, *_: Any, **__: Any) -> NoReturn:
        raise StudyError(
            "a recipe of fedfms has no components to change", where=self.name,
            do="change the study: recipe(..., overrides=['KEY=VALUE'])",
        )  # fmt: skip

    to = to_server = to_clients = _reject


class FedfmsRecipe(Recipe):
    """The recipe of a study.

    Args:
        study: the study, with its method.
        name: of the job; default: STUDY-METHOD.
    """

    def __init__(self, study: Study, name: str = "") -> None:
        self.study = resolve_study(study, make_method(study.method, study.method_options))
        self._study_job = StudyJob(self.study, name or f"{study.name}-{study.method}")
        super().__init__(self._study_job)

    def _apply_per_site_config(self, config: dict[str, dict[str, Any]]) -> None:
        self._study_job._reject()

    def _add_to_client_apps(self, obj: Any, clients: list[str] | None = None, **kwargs: Any) -> None:
        self._study_job._reject()
