"Multi-Head Explainer: class-specific saliency maps that add up to the logit, from one forward pass."

# Hand-written, the only such file in the package: the version and the public names.
# Names are looked up when first used, so that `import mhex` (and `mhex.core`) stays light.
__version__ = "0.1.0"

from importlib import import_module

_HOME = {
    "core": "Gate Head Unit equiv_matrix BlockRecord pools",
    "hooks": "",
    "files": "",
    "losses": "DeepSupervisionLoss",
    "adapt": "attach detach Adapter BlockSpec register_adapter MHEX",
    "cnn": "SmallResNet",
    "transformer": "token_smoothing",
    "pretrained": "create_backbone from_pretrained load_weights",
    "saliency": "explain Explanation author_settings map_kinds",
    "metrics": "",
    "collaboration": "",
    "explainers": "",
    "doors": "CaptumDoor CAMDoor quantus_explain",
    "minibert": "mini_bert",
    "data": "load_data",
    "textdata": "load_text",
    "train": "mhex_learner MHEXCallback MHEXInterpretation",
    "diagnostics": "CollaborationCallback",
    "viz": "",
    "tokens": "",
    "bench": "",
    "compare": "",
    "panels": "",
    "inspection": "",
    "training_run": "TrainingRun",
    "widgets": "ErrorPanel ImageInspector TextInspector TrainingPanel",
}
_NAMES = {name: mod for mod, names in _HOME.items() for name in names.split()}
__all__ = sorted(_NAMES) + ["__version__"]


def __getattr__(name):
    if name in _NAMES: return getattr(import_module(f"mhex.{_NAMES[name]}"), name)
    if name in _HOME: return import_module(f"mhex.{name}")
    raise AttributeError(f"module 'mhex' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__(): return sorted({*globals(), *__all__, *_HOME})
