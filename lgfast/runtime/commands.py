"""List the commands of `lgfast`."""

from __future__ import annotations

# command -> module with a `main` and a `command_parser`, what it does
COMMANDS = {
    "train": ("train", "train a network, with its teacher first, or a sweep of them"),
    "sweep": ("train", "train many settings: --sweep KEY=A,B,C or --sweep-space FILE"),
    "evaluate": ("evaluate", "test a checkpoint"),
    "predict": ("predict", "name the classes of new pictures"),
    "export": ("export", "write a network for timm, PyTorch, ONNX or the Hugging Face hub"),
    "report": ("report", "compare runs side by side"),
    "attention-distance": ("attention_distance", "measure how far the heads of each layer look"),
    "reproduce": ("reproduce", "run rows of the paper's table"),
    "doctor": ("doctor.__main__", "check the installation or a data set, with a fix for every problem"),
    "completion": ("completion.__main__", "print a script with which a shell completes all of this"),
}
