"""Errors, sorted by who can act on them. Each text says what happened, with the value, and what to do."""


class TrainerError(Exception):
    """Anything the loop reports to a person; its text is meant to be shown as it is."""


class ConfigError(TrainerError):
    """Whoever set up the run has to change something: a field, a file, a key.

    `fields` maps the dotted name of each refused setting to what is wrong with it, so that a form can say so in place.
    """

    def __init__(self, message: str, *, fields: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.fields = fields or {}


class DamagedCheckpoint(ConfigError):
    """The files of a checkpoint are not what was written: the loop tunes it again, others need a copy of it."""


class TeacherUnavailable(TrainerError):
    """The endpoint could not be reached or kept failing: the same stage can go on later, nothing is lost."""


class BudgetSpent(TrainerError):
    """The next call could cost more than is left of a budget: the stage stops with all it has, and goes on once the budget is raised."""


class ResponseFormatError(TrainerError):
    """A model answered something that cannot be used: ask again, then quarantine the item and count it."""


class TooManyQuarantined(TrainerError):
    """More could not be scored than a run lets pass: a person tries again, scores by hand or leaves out, and then it goes on."""


class RequestRefused(ResponseFormatError):
    """The endpoint is well and will not answer this one request (a content filter, a prompt too long): asking again changes nothing."""


class OutOfMemory(TrainerError):
    """The model, batch or length does not fit: the text says which smaller value to try."""


class LossDiverged(ConfigError):
    """The loss is no number or grows: whoever set up the run has to choose a smaller learning rate or a wider precision."""


class DataWorkerDied(TrainerError):
    """A process that prepares batches died: with fewer of them, or more memory, the tuning goes on from its last save."""


class NoSpace(TrainerError):
    """A disk is too full for what must be written there: nothing half written is left behind."""


class Cancelled(TrainerError):
    """Somebody asked for a stop; not a failure."""


class ChildDied(TrainerError):
    """The process that held the model ended without a word (killed, out of host memory): the work starts again from its last save."""
