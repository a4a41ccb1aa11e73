"""A small network with weights of lgfast, and pictures for it."""

import numpy as np
import torch
from PIL import Image

from lgfast.assembly.networks import build_model
from lgfast.config import load_recipe, replace, to_dict
from lgfast.records.checkpoint import save_weights

CLASSES = ("ant", "bee", "caf\u00e9")
CONFIG = replace(load_recipe("digits"), {"model.depth": 2, "model.embed_dim": 32, "model.drop_path_rate": 0.0})


def save_network(path):
    """Random weights whose classes differ, as a file of a run; the network in evaluation."""
    torch.manual_seed(5)
    model = build_model(CONFIG, len(CLASSES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_weights(path, model.state_dict(), {"config": to_dict(CONFIG), "class_names": list(CLASSES)})
    return model.eval()


def save_pictures(folder, count=5):
    """PNG files of several sizes, one of them grey; their paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    paths = []
    for number in range(count):
        shape = (20 + 7 * number, 31) if number == 1 else (20 + 7 * number, 31, 3)
        paths.append(folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(paths[-1])
    return paths


def plain_probabilities(model, path):
    """By Pillow and PyTorch: a bilinear squash, normalisation, softmax."""
    spec = CONFIG.augment
    picture = Image.open(path).convert("RGB")
    size = spec.image_size
    picture = picture.resize((size, picture.height), Image.Resampling.BILINEAR).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    with torch.no_grad():
        return model(((pixels - mean) / std)[None]).softmax(1)[0]
