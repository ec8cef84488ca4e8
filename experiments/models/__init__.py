"""The tables, one noun a file."""

from experiments.models.benchmark import Benchmark, HeldOutItem
from experiments.models.calls import Batch, Budget, LedgerLine, Pace, PendingCall
from experiments.models.checkpoint import BenchmarkAnswer, BenchmarkScore, Checkpoint, Metric
from experiments.models.completion import Completion
from experiments.models.diversity import Diversity, Traits
from experiments.models.endpoint import Endpoint
from experiments.models.errand import Errand, ErrandKind
from experiments.models.experiment import Experiment
from experiments.models.imitation import Imitation
from experiments.models.instruction import Candidate, Instruction
from experiments.models.playground import Answer, Question, Speaker
from experiments.models.pool import SeedInstruction, SeedPool
from experiments.models.review import Review
from experiments.models.run import Iteration, Job, Run, Stage, Threshold
from experiments.models.verdict import Judgement, Response, Role, Verdict

__all__ = [
    "Answer",
    "Batch",
    "Benchmark",
    "BenchmarkAnswer",
    "BenchmarkScore",
    "Budget",
    "Candidate",
    "Checkpoint",
    "Completion",
    "Diversity",
    "Endpoint",
    "Errand",
    "ErrandKind",
    "Experiment",
    "HeldOutItem",
    "Imitation",
    "Instruction",
    "Iteration",
    "Job",
    "Judgement",
    "LedgerLine",
    "Metric",
    "Pace",
    "PendingCall",
    "Question",
    "Response",
    "Review",
    "Role",
    "Run",
    "SeedInstruction",
    "SeedPool",
    "Speaker",
    "Stage",
    "Threshold",
    "Traits",
    "Verdict",
]
