"""The sentences of the verdict, for every way a comparison can end."""

from __future__ import annotations

import pytest

from xmodal_dist.baselines.verdict import sentences


def _model(name, role, accuracy, val_accuracy=None):
    return {
        "name": name,
        "title": f"the {name}",
        "role": role,
        "accuracy": accuracy,
        "val_accuracy": val_accuracy,
    }


def _pair(first, second, p):
    difference = first["accuracy"] - second["accuracy"]
    return {
        "first": first["name"], "second": second["name"], "difference": difference, "p_holm": p,
        "interval": (difference - 0.01, difference + 0.02), "significant": p < 0.05,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accuracy", "p", "begins", "holds"),
    [
        (
            0.95,
            0.0004,
            "The network wins: the network reaches 95.0 %",
            "5.0 points (95 % interval 4.0 to 7.0)",
        ),
        (0.91, 0.3, "The network does not clearly win", "within chance (corrected p = 0.300)"),
        (0.90, 1.0, "The network does not win", "On 400 rows there is no difference."),
        (0.89, 0.3, "The network does not win: ", "1.0 points (95 % interval -1.0 to 2.0) is within chance"),
        (0.80, 0.01, "The network does not win; it loses", "more than chance (corrected p = 0.010)"),
    ],
)
def test_against_the_classical_model_that_validation_chose(accuracy, p, begins, holds):
    network = _model("network", "network", accuracy)
    chosen, other = _model("svm", "baseline", 0.90, 0.92), _model("nb", "baseline", 0.85, 0.91)
    said = sentences([network, chosen, other], [_pair(network, chosen, p), _pair(network, other, p)], 400)
    assert said[0].startswith(begins) and holds in said[0]
    assert "best on the validation split (the svm) 90.0 %" in said[0]


def test_models_above_that_were_not_chosen_are_told_as_well():
    network = _model("network", "network", 0.93)
    chosen, lucky = _model("svm", "baseline", 0.90, 0.92), _model("nb", "baseline", 0.94, 0.91)
    pairs = [_pair(network, chosen, 0.001), _pair(network, lucky, 1.0)]
    said = sentences([network, chosen, lucky], pairs, 400)
    assert said[0].startswith("The network wins")
    assert said[1].startswith("One more classical model comes out at least level") and "flatters" in said[1]


@pytest.mark.parametrize(
    ("accuracy", "p", "words"),
    [
        (0.97, 0.001, "In the network, fusion pays"),
        (0.93, 0.2, "In the network, fusion does not clearly beat the best single modality"),
        (0.92, 1.0, "In the network, fusion does not beat the best single modality"),
        (0.85, 0.001, "In the network, fusion does harm"),
    ],
)
def test_fusion_against_the_best_single_modality(accuracy, p, words):
    network = _model("network", "network", accuracy)
    image, text = _model("image", "network_single", 0.7), _model("text", "network_single", 0.92)
    said = sentences([network, image, text], [_pair(network, image, 0.001), _pair(network, text, p)], 400)
    assert len(said) == 1 and said[0].startswith(words) and "(the text) 92.0 %" in said[0]


def test_without_a_validation_split_the_choice_is_called_by_its_name():
    network, svm = _model("network", "network", 1.0), _model("svm", "baseline", 0.9999)
    said = sentences([network, svm], [_pair(network, svm, 0.9)], 10_000)
    assert "best on these very rows (the svm) 99.9 %" in said[0]
