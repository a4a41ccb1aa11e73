"""Write the README of an exported network."""

from __future__ import annotations

from pathlib import Path

from lgfast.inference.classifier import Classifier
from lgfast.records.result import read_result

ONE_CLASS = "The softmax of the logits is the probabilities of the classes."
SEVERAL_CLASSES = "A picture may have several classes: the sigmoid of a logit is the probability of its class."
SCALE = " (pixels {}, whose values {:g} to {:g} stand for 0 to 1)"
CARD = """---
library_name: timm
tags:
- image-classification
- timm
license: other
license_name: FILL-IN
license_link: FILL-IN
---

# {name}

`{model}` trained from scratch on {dataset} ({num_classes} classes) at {size}x{size} by lgfast, {guidance}.

## Use

```python
import timm
model = timm.create_model("local-dir:FOLDER")
```

Pictures are resized to {size}x{size} by Pillow's bilinear filter, without a crop, and normalised with mean {mean} and
standard deviation {std}{scale}. {probabilities}
`python -m lgfast.predict FOLDER/model.safetensors PICTURES` does all of it.

## Result

{result}

## Recipe

{epochs} epochs, batches of {batch_size}, `{optimizer}` at learning rate {lr:g}, weight decay {weight_decay:g}. The
header of `model.safetensors` holds the whole configuration.

## Classes

{classes}
"""


def model_card(classifier: Classifier, source: Path) -> str:
    """Return Markdown with data, recipe, result, and fields for the licence.

    Args:
        classifier: what was exported.
        source: the run's folder or a weights file; the card shows a run's result.
    """
    config = classifier.config
    result = read_result(source) if source.is_dir() else None
    score = "Not recorded beside these weights."
    if result is not None:
        figure = f"Top-1 accuracy on the test images: {result.test_top1:.2f} %"
        if result.test_map is not None:
            figure = f"Mean average precision on the test images: {result.test_map:.2f} %"
        score = f"{figure} (epoch chosen on {result.selected_on})."
    weight = config.guidance.weight
    return CARD.format(
        name=config.name,
        model=config.model.name,
        dataset=config.data.dataset,
        num_classes=len(classifier.class_names),
        size=config.augment.image_size,
        guidance=f"with locality guidance of weight {weight:g}" if weight else "without guidance",
        mean=config.augment.mean,
        std=config.augment.std,
        scale="" if config.data.is_rgb else SCALE.format(config.data.pixels, *config.augment.value_range),
        probabilities=SEVERAL_CLASSES if classifier.is_multi_label else ONE_CLASS,
        result=score,
        epochs=config.epochs,
        batch_size=config.data.batch_size,
        optimizer=config.optim.name,
        lr=config.optim.lr,
        weight_decay=config.optim.weight_decay,
        classes=", ".join(classifier.class_names),
    )
