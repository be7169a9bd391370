"""The code that a saved folder carries: Transformers loads it where this package is missing.

With `trust_remote_code=True` the Auto classes find in `auto_map` which class of which file to load.
The files are those of this folder that lead there by relative imports.
"""

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from transformers.dynamic_module_utils import get_relative_import_files

AUTO_CLASSES = {
    "AutoConfig": "configuration_segment_anything.SegmentAnythingModelConfig",
    "AutoModel": "modeling_segment_anything.SegmentAnythingModel",
    "AutoModelForMaskGeneration": "modeling_segment_anything.SegmentAnythingModel",
    "TFAutoModel": "modeling_tf_segment_anything.TFSegmentAnythingModel",
    "AutoImageProcessor": "image_processing_segment_anything.SegmentAnythingImageProcessor",
    "AutoProcessor": "processing_segment_anything.SegmentAnythingProcessor",
}
"""Classes by the Auto class that loads them; there is no TFAutoModel, the name stands for Keras."""


def copy_code(folder: str | os.PathLike[str]) -> None:
    """Copies the files of all the classes, except for those that are not here.

    Where this very file was loaded from a folder or a repository, only those files are here that
    were needed so far.

    Args:
        folder: Where to, made if needed.
    """
    here = Path(__file__).parent
    entries = {here / f"{name.split('.')[0]}.py" for name in AUTO_CLASSES.values()}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for entry in filter(Path.exists, entries):
        for path in (entry, *map(Path, get_relative_import_files(entry))):
            shutil.copyfile(path, Path(folder) / path.name)


class CarriesCode:
    """What is saved carries its code; to be the first base class of what Transformers saves."""

    auto_names: ClassVar[tuple[str, ...]]
    """Auto classes that look into the file which is saved."""

    auto_map: dict[str, str]
    """What they find there; known once something was saved or loaded."""

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> Any:
        """Writes what the base class writes, and the code that loads it without this package.

        Args:
            save_directory: Folder, made if needed.
            push_to_hub: Whether to upload the folder.
            kwargs: Options of the base class, `repo_id` and others of `push_to_hub`.
        """
        copy_code(save_directory)
        image_processor = getattr(self, "image_processor", None)
        for part in filter(None, (self, image_processor)):
            part.auto_map = part._auto_map(Path(save_directory))
        written = super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]
        if image_processor is not None:  # a processor that is loaded does not know it either
            del self.auto_map
        if push_to_hub:
            repository = kwargs.pop("repo_id", Path(save_directory).name)
            self.push_to_hub(repository, **kwargs)  # type: ignore[attr-defined]
        return written

    def _auto_map(self, folder: Path) -> dict[str, str]:
        """Those of the classes whose file is in the folder."""
        return {
            name: AUTO_CLASSES[name]
            for name in self.auto_names
            if (folder / f"{AUTO_CLASSES[name].split('.')[0]}.py").exists()
        }
