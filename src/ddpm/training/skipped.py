"""Broken files are named while a run goes on: of a large set they show only as they are drawn."""

from accelerate import Accelerator
from accelerate.utils import gather_object

from ddpm.data.dataset import Report


class Skipped:
    """Prints the broken files of a report, each once, whichever process met it."""

    def __init__(self, report: Report, accelerator: Accelerator):
        self.report, self.accelerator = report, accelerator
        self._told: set[str] = set()

    def tell(self) -> None:
        """Those met since the last time; to be called in every process at once."""
        met = list(self.report.skipped)  # a copy, for the thread that draws ahead may add to it
        if self.accelerator.num_processes > 1:
            met = gather_object(met)
        news = Report(self.report.source)
        for name, reason in met:
            if name not in self._told:
                news.skip(name, reason)
        self._told.update(name for name, _ in met)
        if text := news.summary():
            self.accelerator.print(text)
