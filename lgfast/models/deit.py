"""DeiT: timm's model with the paper's initialisation."""

from torch import nn


def init_deit(model: nn.Module) -> None:
    """Zero heads, so the first loss is exactly ln(K), and a class token from N(0, 0.02); the rest is timm's.

    Source: the paper's code; timm draws the head from N(0, 0.02) and the token from N(0, 1e-6).
    """
    nn.init.normal_(model.cls_token, std=0.02)
    heads = model.get_classifier()
    for head in heads if isinstance(heads, tuple) else (heads,):  # the distilled model has two
        if isinstance(head, nn.Linear):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
