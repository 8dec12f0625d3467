"""The handshake of two neighbours, message by message, honest and not."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import RemoteProtocolError
from mdi.net.keys import Key, Keys
from mdi.ring.handshake import Initiator, KeyMismatch, Responder
from mdi.ring.messages import Hello, Proof, Welcome
from support.wire import SESSION, few_examples

NEW, OLD = Key("correct horse battery staple", "test"), Key("another horse, another staple", "test")
KEY, OTHER = Keys(NEW), Keys(OLD)
BOTH = Keys(NEW, OLD)
FACTS = {"rank": 1, "n_nodes": 3, "model_digest": "ab" * 32}
NONE, DIFFERENT = "and the caller has none", "have different keys"


def meet(initiator: Initiator, responder: Responder) -> bytes | None:
    """A whole handshake; the session key, on which both sides agree."""
    proof, session_key = initiator.prove(responder.welcome(initiator.hello()))
    assert responder.check(proof) == session_key
    return session_key


def test_two_nodes_with_one_key_meet() -> None:
    same = Keys(Key("correct horse battery staple", "another file"))
    assert meet(Initiator(SESSION, FACTS, KEY), Responder(SESSION, FACTS, same))


def test_two_nodes_without_a_key_meet() -> None:
    initiator, responder = Initiator(SESSION, FACTS, None), Responder(SESSION, FACTS, None)
    assert initiator.hello() == Hello(FACTS)
    assert responder.welcome(initiator.hello()) == Welcome()
    assert initiator.prove(Welcome()) == (Proof(), None)
    assert responder.check(Proof()) is None


def test_every_handshake_has_nonces_of_its_own() -> None:
    hellos = [Initiator(SESSION, FACTS, KEY).hello() for _ in range(100)]
    assert len({hello.facts["nonce"] for hello in hellos}) == 100
    welcomes = [Responder(SESSION, FACTS, KEY).welcome(hellos[0]) for _ in range(100)]
    assert len({welcome.nonce for welcome in welcomes}) == len({welcome.mac for welcome in welcomes}) == 100


# ---- one of the two lacks the key


def test_a_caller_without_a_key_is_told_so() -> None:
    responder = Responder(SESSION, FACTS, KEY)
    with pytest.raises(KeyMismatch, match=NONE) as caught:
        responder.welcome(Initiator(SESSION, FACTS, None).hello())
    assert responder.refuse(caught.value).reason == "this ring has a key and the caller has none"


def test_a_caller_with_a_key_is_told_that_the_node_has_none() -> None:
    responder = Responder(SESSION, FACTS, None)
    with pytest.raises(KeyMismatch) as caught:
        responder.welcome(Initiator(SESSION, FACTS, KEY).hello())
    assert responder.refuse(caught.value).reason == "the caller has a key and this node has none"


def test_a_caller_with_a_key_does_not_take_a_node_without_one() -> None:
    with pytest.raises(KeyMismatch, match="this node has none"):
        Initiator(SESSION, FACTS, KEY).prove(Welcome())


def test_a_caller_without_a_key_does_not_take_a_node_with_one() -> None:
    with pytest.raises(KeyMismatch, match=NONE):
        Initiator(SESSION, FACTS, None).prove(Welcome(b"n" * 16, b"m" * 32))


def test_different_keys_are_noticed_by_the_caller_first() -> None:
    initiator = Initiator(SESSION, FACTS, KEY)
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        initiator.prove(Responder(SESSION, FACTS, OTHER).welcome(initiator.hello()))


def test_a_caller_that_goes_on_with_another_key_is_not_let_in() -> None:
    responder = Responder(SESSION, FACTS, KEY)
    initiator = Initiator(SESSION, FACTS, OTHER)
    welcome = responder.welcome(initiator.hello())
    for mac in (OLD.mac(b""), b"", bytes(32), welcome.mac):
        with pytest.raises(KeyMismatch, match=DIFFERENT):
            responder.check(Proof(mac))


# ---- what was heard on another connection


def heard() -> tuple[Hello, Welcome, Proof]:
    """What somebody on the line hears of an honest handshake."""
    initiator, responder = Initiator(SESSION, FACTS, KEY), Responder(SESSION, FACTS, KEY)
    hello = initiator.hello()
    welcome = responder.welcome(hello)
    return hello, welcome, initiator.prove(welcome)[0]


def test_a_hello_and_a_proof_that_were_heard_do_not_let_in_again() -> None:
    hello, _, proof = heard()
    responder = Responder(SESSION, FACTS, KEY)
    responder.welcome(hello)
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        responder.check(proof)


def test_a_welcome_that_was_heard_is_not_taken_again() -> None:
    _, welcome, _ = heard()
    initiator = Initiator(SESSION, FACTS, KEY)
    initiator.hello()
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        initiator.prove(welcome)


def test_proofs_are_of_their_epoch() -> None:
    later = replace(SESSION, epoch=SESSION.epoch + 1)
    hello, welcome, proof = heard()
    initiator = Initiator(later, FACTS, KEY)
    initiator._facts = hello.facts  # even with the same nonces
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        initiator.prove(welcome)
    responder = Responder(later, FACTS, KEY)
    responder.welcome(hello)
    responder._nonce = welcome.nonce
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        responder.check(proof)


def test_proofs_are_of_their_facts() -> None:
    hello, welcome, _ = heard()
    initiator = Initiator(SESSION, FACTS | {"rank": 2}, KEY)
    initiator._facts |= {"nonce": hello.facts["nonce"]}
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        initiator.prove(welcome)


def test_a_proof_that_is_sent_back_proves_nothing() -> None:
    hello, welcome, proof = heard()
    responder = Responder(SESSION, FACTS, KEY)
    responder.welcome(hello)
    responder._nonce = welcome.nonce
    responder.check(proof)  # it is the right responder, so that what follows is about the MAC alone
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        responder.check(Proof(welcome.mac))
    initiator = Initiator(SESSION, FACTS, KEY)
    initiator._facts = hello.facts
    initiator.prove(welcome)
    with pytest.raises(KeyMismatch, match=DIFFERENT):
        initiator.prove(Welcome(welcome.nonce, proof.mac))


@pytest.mark.parametrize("n_bytes", [0, 1, 31])
def test_a_proof_that_is_cut_off_proves_nothing(n_bytes: int) -> None:
    initiator, responder = Initiator(SESSION, FACTS, KEY), Responder(SESSION, FACTS, KEY)
    proof, _ = initiator.prove(responder.welcome(initiator.hello()))
    with pytest.raises(KeyMismatch):
        responder.check(Proof(proof.mac[:n_bytes]))


@few_examples
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32))
def test_arbitrary_welcomes_are_not_taken(nonce: bytes, mac: bytes) -> None:
    with pytest.raises(KeyMismatch):
        Initiator(SESSION, FACTS, KEY).prove(Welcome(nonce, mac))


# ---- the session key


def test_every_connection_has_a_session_key_of_its_own() -> None:
    keys = {meet(Initiator(SESSION, FACTS, KEY), Responder(SESSION, FACTS, KEY)) for _ in range(100)}
    assert len(keys) == 100


def test_a_session_key_is_none_of_the_proofs() -> None:
    initiator, responder = Initiator(SESSION, FACTS, BOTH), Responder(SESSION, FACTS, BOTH)
    welcome = responder.welcome(initiator.hello())
    proof, session_key = initiator.prove(welcome)
    assert session_key not in (proof.mac, welcome.mac[:32], welcome.mac[32:])


# ---- while a key is being replaced


@pytest.mark.parametrize("caller", [KEY, OTHER, BOTH])
@pytest.mark.parametrize("answerer", [KEY, OTHER, BOTH])
def test_two_nodes_meet_if_they_have_a_key_in_common(caller: Keys, answerer: Keys) -> None:
    initiator, responder = Initiator(SESSION, FACTS, caller), Responder(SESSION, FACTS, answerer)
    if {caller, answerer} == {KEY, OTHER}:
        with pytest.raises(KeyMismatch, match=DIFFERENT):
            meet(initiator, responder)
    else:
        assert meet(initiator, responder)


def test_two_nodes_with_the_new_key_cannot_be_made_to_use_the_old_one() -> None:
    initiator, responder = Initiator(SESSION, FACTS, BOTH), Responder(SESSION, FACTS, BOTH)
    welcome = responder.welcome(initiator.hello())
    for mac in (welcome.mac[32:], bytes(32) + welcome.mac[32:], welcome.mac[32:] + welcome.mac[:32]):
        with pytest.raises(KeyMismatch, match=DIFFERENT):
            initiator.prove(Welcome(welcome.nonce, mac))


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
            Responder(SESSION, FACTS, key).welcome(Hello(facts))


@pytest.mark.parametrize("nonce", [None, "", "00" * 15, "00" * 17, "zz" * 16, "AB" * 16, 7, ["00" * 16]])
def test_a_nonce_that_is_none_counts_as_no_key(nonce: object) -> None:
    with pytest.raises(KeyMismatch, match=NONE):
        Responder(SESSION, FACTS, KEY).welcome(Hello(FACTS | {"nonce": nonce}))


def test_facts_that_differ_are_told_only_where_there_is_no_key() -> None:
    for key, told in ((KEY, False), (None, True)):
        responder = Responder(SESSION, FACTS | {"model_digest": "cd" * 32}, key)
        with pytest.raises(RemoteProtocolError, match="this node expects 'cdcd") as caught:
            responder.welcome(Initiator(SESSION, FACTS, key).hello())
        assert ("cdcd" in responder.refuse(caught.value).reason) is told


def test_facts_that_nobody_asked_for_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match=r"unknown facts: \['colour'\]"):
        Responder(SESSION, FACTS, None).welcome(Hello(FACTS | {"colour": "red"}))
