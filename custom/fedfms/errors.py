"""Errors for people: one line that says what is wrong, where (site, round, file of the study) and what to do.

They never contain a patient's file name, path or pixel: a case is named by its pseudonymous id.
"""

from __future__ import annotations


class FedfmsError(Exception):
    """Base of all expected faults: `what` is wrong, `where` (a site, a study, a job) and what to `do` about it."""

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        self.what, self.where, self.do = what, where, do
        super().__init__(self.line())

    def line(self) -> str:
        """The message on one line: `where: what; do`."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        return " ".join((f"{text}; {self.do}" if self.do else text).split())

    def at(self, where: str) -> FedfmsError:
        """The same error with more error context: `where` precedes the context that it already has."""
        # An inner call may have added the same context.
        known = [part for part in self.where.split(", ") if part and part not in where.split(", ")]
        return type(self)(self.what, where=", ".join([where, *known]), do=self.do)


class StudyError(FedfmsError):
    """A study, preset, override or job configuration is not valid."""


class SettingsError(FedfmsError):
    """A site's own settings are missing or wrong."""


class CheckpointError(FedfmsError):
    """A file of pre-trained weights is missing, damaged, or does not fit the model."""


class DataError(FedfmsError):
    """Images, masks or a manifest are missing or do not fit each other."""


class TooFewError(DataError):
    """A site has too few patients to disclose statistics about them."""


class TrainingError(FedfmsError):
    """Training or evaluation cannot continue, for example because the loss is not finite."""


class UpdateError(FedfmsError):
    """An update from a site, or the set of them, cannot be aggregated."""


class ProvisioningError(FedfmsError):
    """A project file, kit, certificate or passphrase of a federation is not valid."""
