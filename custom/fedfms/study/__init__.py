"""The study: typed and validated, from YAML to an object to the job configuration."""

from fedfms.study.aggregation import AGGREGATION_RULES, too_few_updates
from fedfms.study.loading import STUDIES, check_sites_known, find_study, find_yaml, load_study, yaml_names
from fedfms.study.presets import PRESETS
from fedfms.study.spec import (
    PHANTOM,
    PHANTOM_SITES,
    DataSpec,
    FederationSpec,
    ModelSpec,
    Structure,
    Study,
    TrainSpec,
)

__all__ = [
    "AGGREGATION_RULES", "PHANTOM", "PHANTOM_SITES", "PRESETS", "STUDIES", "DataSpec", "FederationSpec", "ModelSpec",
    "Structure", "Study", "TrainSpec", "check_sites_known", "find_study", "find_yaml", "load_study",
    "too_few_updates", "yaml_names",
]  # fmt: skip
