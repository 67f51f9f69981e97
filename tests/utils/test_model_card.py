# SPDX-License-Identifier: Apache-2.0
"""Model cards: what they hold, what is refused, and their texts."""

import json

import pytest

from person_search.utils.model_card import VERSION, ModelCard, ModelCardError

FULL = ModelCard(
    method="PSDiff",
    config="ab" * 32,
    data=("mine_train", "yours_train"),
    kind="photographs",
    identities=9,
    images=20,
    input_size=(240, 320),
    embed_dim=128,
    score_thresh=0.3,
    metrics={"mine_test": {"search": {"mAP": 61.25, "top1": 80.0}, "detection": {"AP50": 70.0}}},
    license="CC-BY-NC-4.0",
    date="2026-05-01",
    versions={"torch": "2.14.1"},
)


@pytest.mark.parametrize("card", [FULL, ModelCard("DiffPS")])
def test_json_and_back(card) -> None:
    assert ModelCard.from_json(card.to_json()) == card
    assert ModelCard.from_json(json.dumps(card.to_json())) == card


def test_unknown_keys_are_ignored() -> None:
    assert ModelCard.from_json({**FULL.to_json(), "carbon": 3}) == FULL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "paintings"}, "its kind is 'paintings'; allowed: drawn, photographs, mixed, unk"),
        ({"kind": ["drawn"]}, "its kind is"),
        ({"method": ""}, "its method is ''; allowed: a name"),
        ({"method": 3}, "its method is 3"),
        ({"data": "mine_train"}, "its data is 'mine_train'; allowed: a list of names"),
        ({"identities": -1}, "its identities is -1; allowed: an integer >= 0"),
        ({"images": True}, "its images is True"),
        ({"embed_dim": "128"}, "its embed_dim is '128'"),
        ({"input_size": [240]}, r"its input_size is \(240,\); allowed: \[shorter"),
        ({"score_thresh": 1.5}, "its score_thresh is 1.5; allowed: null or a number from 0 to 1"),
        ({"score_thresh": True}, "its score_thresh is True"),
        ({"metrics": {"mine": {"search": 3}}}, "its metrics is .*allowed: {data set"),
        ({"metrics": {"mine": {"search": {"mAP": float("nan")}}}}, "its metrics is"),
        ({"license": None}, "its license is None; allowed: a text"),
        ({"date": "yesterday"}, "its date is 'yesterday'; allowed: an ISO 8601 date"),
        ({"versions": {"torch": 2}}, "its versions is {'torch': 2}"),
        ({"version": VERSION + 1}, f"its version is {VERSION + 1}; this program reads {VERSION}"),
        ({"version": "x" * 99}, r"its version is 'x+\.\.\.; "),
    ],
)
def test_a_card_with_a_wrong_value_is_refused(changes, message) -> None:
    with pytest.raises(ModelCardError, match=message):
        ModelCard.from_json({**FULL.to_json(), **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "it is not JSON"),
        ("[1]", "it is not an object with the key 'method'"),
        ("{}", "it is not an object with the key 'method'"),
        (7, "it is not an object"),
    ],
)
def test_what_is_not_a_card_is_refused(content, message) -> None:
    with pytest.raises(ModelCardError, match=message):
        ModelCard.from_json(content)


def test_texts() -> None:
    assert FULL.describe() == (
        "PSDiff, trained on photographs (mine_train, yours_train: 9 identities, 20 images); "
        "mAP 61.2, top1 80.0, AP50 70.0 on mine_test (score threshold 0.3); license CC-BY-NC-4.0; "
        "2026-05-01"
    )
    assert ModelCard("DiffPS").describe() == "DiffPS, trained on images of unknown kind"
    facts = dict(FULL.facts())
    assert facts["embedding"] == "dimension 128" and facts["input size"] == "240 to 320"
    assert facts["config"] == "ab" * 6 and facts["versions"] == "torch 2.14.1"
    assert dict(ModelCard("DiffPS").facts()) == {
        "method": "DiffPS",
        "training data": "images of unknown kind",
        "license": "not stated",
    }
