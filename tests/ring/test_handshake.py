"""The handshake of two neighbours, message by message, honest and not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import RemoteProtocolError
from mdi.net.keys import Key
from mdi.ring.handshake import Answerer, Caller, KeyMismatch
from mdi.ring.messages import Hello, Proof, Welcome
from support.wire import SESSION, few_examples

KEY, OTHER = Key("correct horse battery staple", "test"), Key("another horse, another staple", "test")
FACTS = {"node": 1, "n_nodes": 3, "model_digest": "ab" * 32}
NONE, DIFFERENT = "and the caller has none", "have different keys"


def meet(caller: Caller, answerer: Answerer) -> None:
    """A whole handshake."""
    answerer.check(caller.prove(answerer.welcome(caller.hello())))


def test_two_nodes_with_one_key_meet() -> None:
    meet(Caller(SESSION, FACTS, KEY), Answerer(SESSION, FACTS, Key("correct horse battery staple", "another file")))


def test_two_nodes_without_a_key_meet() -> None:
    caller, answerer = Caller(SESSION, FACTS, None), Answerer(SESSION, FACTS, None)
    assert caller.hello() == Hello(FACTS)
    assert answerer.welcome(caller.hello()) == Welcome()
    assert caller.prove(Welcome()) == Proof()
    answerer.check(Proof())


def test_every_handshake_has_nonces_of_its_own() -> None:
    hellos = [Caller(SESSION, FACTS, KEY).hello() for _ in range(100)]
    assert len({hello.facts["nonce"] for hello in hellos}) == 100
    welcomes = [Answerer(SESSION, FACTS, KEY).welcome(hellos[0]) for _ in range(100)]
    assert len({welcome.nonce for welcome in welcomes}) == len({welcome.mac for welcome in welcomes}) == 100


# ---- one of the two lacks the key


def test_a_caller_without_a_key_is_told_so() -> None:
    answerer = Answerer(SESSION, FACTS, KEY)
    with pytest.raises(KeyMismatch, match=NONE) as caught:
        answerer.welcome(Caller(SESSION, FACTS, None).hello())
    assert answerer.refusal(caught.value).reason == "this ring has a key and the caller has none"


def test_a_caller_with_a_key_is_told_that_the_node_has_none() -> None:
    answerer = Answerer(SESSION, FACTS, None)
    with pytest.raises(KeyMismatch) as caught:
        answerer.welcome(Caller(SESSION, FACTS, KEY).hello())
    assert answerer.refusal(caught.value).reason == "the caller has a key and this node has none"


def test_a_caller_with_a_key_does_not_take_a_node_without_one() -> None:
    with pytest.raises(KeyMismatch, match="this node has none"):
        Caller(SESSION, FACTS, KEY).prove(Welcome())


def test_a_caller_without_a_key_does_not_take_a_node_with_one() -> None:
    with pytest.raises(KeyMismatch, match=NONE):
        Caller(SESSION, FACTS, None).prove(Welcome(b"n" * 16, b"m" * 32))


def test_different_keys_are_noticed_by_the_caller_first() -> None:
    caller = Caller(SESSION, FACTS, KEY)
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        caller.prove(Answerer(SESSION, FACTS, OTHER).welcome(caller.hello()))


def test_a_caller_that_goes_on_with_another_key_is_not_let_in() -> None:
    answerer = Answerer(SESSION, FACTS, KEY)
    caller = Caller(SESSION, FACTS, OTHER)
    welcome = answerer.welcome(caller.hello())
    for mac in (OTHER.mac(b""), b"", bytes(32), welcome.mac):
        with pytest.raises(KeyMismatch, match=DIFFERENT):
            answerer.check(Proof(mac))


# ---- what was heard on another connection


def heard() -> tuple[Hello, Welcome, Proof]:
    """What somebody on the line hears of an honest handshake."""
    caller, answerer = Caller(SESSION, FACTS, KEY), Answerer(SESSION, FACTS, KEY)
    hello = caller.hello()
    welcome = answerer.welcome(hello)
    return hello, welcome, caller.prove(welcome)


def test_a_hello_and_a_proof_that_were_heard_do_not_let_in_again() -> None:
    hello, _, proof = heard()
    answerer = Answerer(SESSION, FACTS, KEY)
    answerer.welcome(hello)
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        answerer.check(proof)


def test_a_welcome_that_was_heard_is_not_taken_again() -> None:
    _, welcome, _ = heard()
    caller = Caller(SESSION, FACTS, KEY)
    caller.hello()
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        caller.prove(welcome)


def test_proofs_are_of_their_epoch() -> None:
    later = replace(SESSION, epoch=SESSION.epoch + 1)
    hello, welcome, proof = heard()
    caller = Caller(later, FACTS, KEY)
    caller._facts = hello.facts  # even with the same nonces
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        caller.prove(welcome)
    answerer = Answerer(later, FACTS, KEY)
    answerer.welcome(hello)
    answerer._nonce = welcome.nonce
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        answerer.check(proof)


def test_proofs_are_of_their_facts() -> None:
    hello, welcome, _ = heard()
    caller = Caller(SESSION, FACTS | {"node": 2}, KEY)
    caller._facts |= {"nonce": hello.facts["nonce"]}
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        caller.prove(welcome)


def test_a_proof_that_is_sent_back_proves_nothing() -> None:
    hello, welcome, proof = heard()
    answerer = Answerer(SESSION, FACTS, KEY)
    answerer.welcome(hello)
    answerer._nonce = welcome.nonce
    answerer.check(proof)  # it is the right answerer, so that what follows is about the MAC alone
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        answerer.check(Proof(welcome.mac))
    caller = Caller(SESSION, FACTS, KEY)
    caller._facts = hello.facts
    caller.prove(welcome)
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        caller.prove(Welcome(welcome.nonce, proof.mac))


@pytest.mark.parametrize("n_bytes", [0, 1, 31])
def test_a_proof_that_is_cut_off_proves_nothing(n_bytes: int) -> None:
    caller, answerer = Caller(SESSION, FACTS, KEY), Answerer(SESSION, FACTS, KEY)
    proof = caller.prove(answerer.welcome(caller.hello()))
    with pytest.raises(KeyMismatch):
        answerer.check(Proof(proof.mac[:n_bytes]))


@few_examples
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_arbitrary_welcomes_are_not_taken(nonce: bytes, mac: bytes) -> None:
    with pytest.raises(KeyMismatch):
        Caller(SESSION, FACTS, KEY).prove(Welcome(nonce, mac))


# ---- what a stranger learns

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@few_examples
@given(st.dictionaries(st.sampled_from([*FACTS, "nonce", "x"]), json_values))
def test_arbitrary_facts_raise_nothing_but_protocol_errors(facts: dict[str, object]) -> None:
    for key in (KEY, None):
        with pytest.raises(RemoteProtocolError):
            Answerer(SESSION, FACTS, key).welcome(Hello(facts))


@pytest.mark.parametrize("nonce", [None, "", "00" * 15, "00" * 17, "zz" * 16, "AB" * 16, 7, ["00" * 16]])
def test_a_nonce_that_is_none_counts_as_no_key(nonce: object) -> None:
    with pytest.raises(KeyMismatch, match=NONE):
        Answerer(SESSION, FACTS, KEY).welcome(Hello(FACTS | {"nonce": nonce}))


def test_facts_that_differ_are_told_only_where_there_is_no_key() -> None:
    for key, told in ((KEY, False), (None, True)):
        answerer = Answerer(SESSION, FACTS | {"model_digest": "cd" * 32}, key)
        with pytest.raises(RemoteProtocolError, match="this node expects 'cdcd") as caught:
            answerer.welcome(Caller(SESSION, FACTS, key).hello())
        assert ("cdcd" in answerer.refusal(caught.value).reason) is told


def test_facts_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"unknown facts: \['colour'\]"):
        Answerer(SESSION, FACTS, None).welcome(Hello(FACTS | {"colour": "red"}))
