"""What the page is about: an atlas, or a model whose atlas is still being built; and perhaps a second atlas."""

import threading
from functools import cached_property
from pathlib import Path
from typing import Any

from covector.analyses.compare_atlases import compare_atlases
from covector.analyses.readout import readout
from covector.atlases import model_of, trace
from covector.errors import BadRequest, CovectorError, HubUnreachable, UnknownModel
from covector.io.atlas import MANIFEST, Atlas
from covector.io.cache import atlas_folder
from covector.model.opened import Model
from covector.render import Table
from covector.web.bundle import Bundle
from covector.web.jobs import Job, Jobs
from covector.web.words import opening
from covector.workbench import open as open_model


class Shown:
    """What the page shows. Weight analyses run here, in the server's threads; models run in the jobs' process.

    `ref`: an atlas folder, or a model by name or folder. `other`: a second atlas folder to compare with.
    Raises what opening an atlas raises; a model is opened when it is first needed.
    """

    def __init__(self, ref: str, other: str | None = None) -> None:
        self.ref = ref
        self._lock = threading.Lock()
        self.folder = Path(ref) if (Path(ref) / MANIFEST).is_file() else atlas_folder(ref)
        self.is_model = self.folder != Path(ref)
        self.building: int | None = None
        self.other_ref = other
        self.other = Bundle(Atlas(other)) if other is not None else None
        self._bundle: Bundle | None = None
        if self.is_built:
            self._bundle = Bundle(Atlas(self.folder))

    @property
    def is_built(self) -> bool:
        """Whether the atlas is there, whole."""
        if self._bundle is not None:
            return True
        try:
            Atlas(self.folder)
        except CovectorError:
            if not self.is_model:
                raise
            return False
        return True

    @property
    def words(self) -> str:
        """How a command names what is shown: as it was typed."""
        return self.ref

    @property
    def in_python(self) -> str:
        """The expression that opens the model, in the atlas' frame."""
        if self.is_model:
            return f"covector.open({self.ref!r})"
        return opening(self.bundle.atlas.manifest)

    @property
    def bundle(self) -> Bundle:
        """The atlas as the page reads it. Raises BadRequest while it is being built."""
        with self._lock:
            if self._bundle is None:
                if not self.is_built:
                    raise BadRequest(f"the atlas of {self.ref} is being built; wait for it")
                self._bundle = Bundle(Atlas(self.folder))
            return self._bundle

    @property
    def atlas(self) -> Atlas | None:
        """The atlas that is shown. Raises BadRequest while it is being built."""
        return self.bundle.atlas

    @cached_property
    def model(self) -> Model:
        """The model of the atlas. Raises what `covector.open` raises where its checkpoint is gone or another."""
        try:
            return model_of(self.bundle.atlas)
        except (HubUnreachable, UnknownModel) as error:
            named = self.bundle.atlas.manifest["reference"]
            raise BadRequest(
                f"expected the checkpoint of this atlas, '{named}': no folder of that name is here, nor is it in the "
                "hub's cache; put it back, or start in its folder"
            ) from error

    def check(self) -> None:
        """Open the model now, where its atlas is still to be built. Raises what `covector.open` raises."""
        open_model(self.ref)

    @cached_property
    def compared(self) -> Table:
        """The comparison with the second atlas. Raises BadRequest where there is none, or nothing in common."""
        return compare_atlases(self.bundle.atlas, self.second)

    @property
    def second(self) -> Atlas:
        """The second atlas. Raises BadRequest where there is none."""
        if self.other is None:
            raise BadRequest(f"expected a second atlas to compare with; start covector view {self.words} OTHER")
        return self.other.atlas

    def build(self, jobs: Jobs) -> Job:
        """Start to build the atlas, or go on where a build was stopped; the one that runs where there is one.

        Raises BadRequest where the atlas is there, or jobs are full.
        """
        with self._lock:
            if self.is_built:
                raise BadRequest(f"the atlas of {self.ref} is there; reload the page")
            known = None if self.building is None else jobs.job(self.building)
            if known is None or not known.runs:
                words = ["atlas", self.ref, f"--out={self.folder}"]
                python = f"covector.build_atlas({self.ref!r}, {str(self.folder)!r})"
                known = jobs.ask("atlas", f"covector {' '.join(words)}", python, lambda _: words)
                self.building = known.id
            return known

    def search(self, query: str, **options: Any) -> Table:
        """Which directions read or write a concept; see `covector.trace`."""
        if query.lstrip().startswith("@"):
            raise BadRequest("expected tokens, got a file; type covector search for files")
        return trace(self.bundle.atlas, query, model=self.model, **options)

    def readout(self, site: str, **options: Any) -> Table:
        """What a place reads and writes; see `covector.readout`."""
        return readout(self.model, site, **options)
