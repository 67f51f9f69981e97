# SPDX-License-Identifier: Apache-2.0
"""URLs of galleries, with and without credentials."""

from pathlib import Path

import pytest

from person_search.search.cli import main
from person_search.search.locations import parse_location


def test_folders_and_addresses(monkeypatch) -> None:
    monkeypatch.delenv("PERSON_SEARCH_MILVUS_TOKEN", raising=False)
    assert parse_location("galleries/a b") == Path("galleries/a b")
    assert parse_location("C:/g") == Path("C:/g")
    one = parse_location("milvus://me:se%20cret@db.local/street")
    assert (one.uri, one.collection, one.database, one.token) == (
        "http://db.local:19530", "street", "", "me:se cret",
    )  # fmt: skip
    assert str(one) == "milvus://db.local/street" and "cret" not in repr(one)
    monkeypatch.setenv("PERSON_SEARCH_MILVUS_TOKEN", "key")
    two = parse_location("milvus+tls://[::1]:1/city/street")
    assert (two.uri, two.collection, two.database, two.token) == (
        "https://[::1]:1", "street", "city", "key",
    )  # fmt: skip
    assert parse_location(two) is two
    lite = parse_location("milvus+lite:///a%20b/x.db")
    assert lite.uri == "/a b/x.db" and lite.is_lite and lite.name == "x.db"
    assert parse_location("milvus+lite:///me@work/x.db").uri == "/me@work/x.db"
    assert parse_location("milvus://me:p@ss%2F@host/g").token == "me:p@ss/"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://bucket/g", "is neither a folder nor one of milvus://"),
        ("milvus://me:secret@host", "is not of the form milvus://HOST"),
        ("milvus://me:sec/secret@host/g", "'milvus://host/g' has credentials with a special"),
        ("milvus+tls://me:secret?a@host/g", "'milvus+tls://host/g' has credentials with"),
        ("milvus://me:secret#@host/g?a=b", "escape each: / is %2F, ? is %3F, # is %23, @ is %40"),
        ("milvus:///me:secret@host/g", "has credentials with a special"),
        ("milvus://me:secret[@host/g", "has credentials with a special"),
        ("milvus://me:secret\u2100@host/g", "has credentials with a special"),
        ("milvus+lite://me:s/secret@host/x.db", "has credentials with a special"),
        ("milvus_tls://me:s/secret@host/g", "has credentials with a special"),
        ("s3://me:secret@host/g", "'s3://host/g' is neither a folder"),
        ("milvus://[::1/g", "'milvus://[::1/g' is not of the form"),
        ("milvus://host:many/g", "has an invalid port"),
        ("milvus://host/a/b/c", "is not of the form"),
        ("milvus://me:secret@host/stra%C3%9Fe", "has the name 'straße'; Milvus allows letters"),
        ("milvus://host/" + "x" * 300, "at most 200"),
        ("milvus+lite://relative/x.db", "is not an absolute path of a file"),
    ],
)
def test_invalid_urls(url, text, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["info", "--gallery", url])
    errors = capsys.readouterr().err
    assert ended.value.code == 2 and text in errors and "secret" not in errors
