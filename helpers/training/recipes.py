"""How each net is trained where the notebook's parameters leave it open."""

from dataclasses import asdict, dataclass, fields, replace

from helpers.nets.pretrained import NETS

NETS_FROM_NOTHING = ("cnn", "compact")
MODELS = (*NETS_FROM_NOTHING, *NETS)


@dataclass(frozen=True)
class Recipe:
    """What belongs to the training of a net. Each attribute is a parameter of the main notebook.

    Attributes:
        epochs: at most.
        patience: epochs without a better validation balanced accuracy before stopping; 0: none of
            that, the last epoch is kept (`training.Checkpoint`).
        batch_size: images per optimizer step and device.
        learning_rate: the highest one.
        schedule: "constant" or "cosine" (`training.make_learning_rate`).
        optimizer: "adam" or "muon" (`training.make_optimizer`).
        weight_decay: per step and unit of learning rate; 0 leaves it out.
        augment: vary the training images (`pipelines.vary_images`).
        class_weight_power: see `training.weigh_classes`.
        views: 1, or 8 turned and mirrored views whose answers are averaged.
        refit: once the epochs to keep are known and the validation part is answered, train the
            same net anew, on that part too.
    """

    epochs: int = 20
    patience: int = 15
    batch_size: int = 32
    learning_rate: float = 0.001
    schedule: str = "constant"
    optimizer: str = "adam"
    weight_decay: float = 0.0
    augment: bool = False
    class_weight_power: float = 0.0
    views: int = 1
    refit: bool = False


# Muon: `muon.ConvolutionMuon`. Decoupled weight decay: Loshchilov & Hutter, ICLR 2019. Warm-up and
# cosine: Goyal et al. 2017; Loshchilov & Hutter, ICLR 2017. Views: Krizhevsky et al., NIPS 2012.
# Refit: Goodfellow, Bengio & Courville, Deep Learning, 2016, algorithm 7.2.
COMPACT = Recipe(
    epochs=40,
    patience=0,  # the rate has come down to zero: the last epochs differ by chance only
    batch_size=64,
    learning_rate=0.003,
    schedule="cosine",
    optimizer="muon",
    weight_decay=0.02,
    augment=True,
    views=8,
    refit=True,
)
PRETRAINED = replace(
    COMPACT,
    epochs=20,
    patience=20,
    batch_size=32,
    learning_rate=0.001,
    optimizer="adam",
    refit=False,
)
NAMES = tuple(field.name.upper() for field in fields(Recipe))


def choose_recipe(parameters: dict) -> Recipe:
    """Return the recipe of a MODEL, with what the parameters set themselves in its place.

    Args:
        parameters: the main notebook's; MODEL, and those of `NAMES`, None where they are open.

    Returns:
        The recipe; that of "cnn" for a MODEL that does not exist (`training.check_parameters` says
        so).
    """
    known = {"compact": COMPACT, **dict.fromkeys(NETS, PRETRAINED)}
    given = {name.lower(): parameters[name] for name in NAMES if parameters[name] is not None}
    return replace(known.get(parameters["MODEL"], Recipe()), **given)


def complete_parameters(parameters: dict) -> dict:
    """Return the parameters with the recipe's values where they were None."""
    recipe = asdict(choose_recipe(parameters))
    return parameters | {name: recipe[name.lower()] for name in NAMES}
