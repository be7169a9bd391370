"""Makes Transformers' Auto classes, and with them its pipelines, know the model.

Transformers' Auto modules import PyTorch wherever it is installed, so this package must not import
them on its own account. It watches for their import instead, and puts the model's entry into each
of them right after it has been executed.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto."


def _register_config(auto: ModuleType) -> None:
    from .model.configuration_segment_anything import SegmentAnythingModelConfig as Config

    auto.AutoConfig.register(Config.model_type, Config, exist_ok=True)


def _register_image_processor(auto: ModuleType) -> None:
    from .model.configuration_segment_anything import SegmentAnythingModelConfig as Config
    from .model.image_processing_segment_anything import SegmentAnythingImageProcessor as Processor

    # Under both names, or an environment with torchvision would find none.
    classes = {"pil": Processor, "torchvision": Processor}
    auto.AutoImageProcessor.register(Config, image_processor_classes=classes, exist_ok=True)


def _register_processor(auto: ModuleType) -> None:
    from .model.configuration_segment_anything import SegmentAnythingModelConfig as Config
    from .model.processing_segment_anything import SegmentAnythingProcessor as Processor

    auto.AutoProcessor.register(Config, Processor, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    # By name, as Transformers keeps its own models. Registering the class would import it now, and
    # with it modules of Transformers whose import may be what has brought us here.
    from .model.configuration_segment_anything import SegmentAnythingModelConfig as Config

    for mapping in (auto.MODEL_MAPPING, auto.MODEL_FOR_MASK_GENERATION_MAPPING):
        mapping._reverse_config_mapping[Config.__name__] = Config.model_type
        mapping._model_mapping[Config.model_type] = "SegmentAnythingModel"
        mapping._modules[Config.model_type] = sys.modules[__package__]


_REGISTRARS: dict[str, Callable[[ModuleType], None]] = {
    _AUTO + "configuration_auto": _register_config,
    _AUTO + "image_processing_auto": _register_image_processor,
    _AUTO + "processing_auto": _register_processor,
    _AUTO + "modeling_auto": _register_models,
}


class _AutoModuleWatcher(MetaPathFinder):
    """Finds no module itself; lets a registrar run when its module has been executed."""

    def __init__(self, registrars: dict[str, Callable[[ModuleType], None]]) -> None:
        self.registrars = registrars

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        register = self.registrars.pop(fullname, None)  # out: the search below comes by here again
        spec = find_spec(fullname) if register else None
        if register is None or spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        loader.exec_module = execute_and_register
        return spec


def register_when_imported() -> None:
    """Registers the model in the Auto modules that are imported, now or later."""
    later = {name: register for name, register in _REGISTRARS.items() if name not in sys.modules}
    sys.meta_path.insert(0, _AutoModuleWatcher(later))
    for name in _REGISTRARS.keys() - later.keys():
        _REGISTRARS[name](sys.modules[name])
