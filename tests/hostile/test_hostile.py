"""Hostile repositories, pictures and requests: all of them slowly, a selection each time."""

import pytest

from tests.hostile.harness import check, outcomes


def test_a_selection_of_hostile_repositories_is_read_or_refused(tmp_path):
    check(outcomes("repositories", tmp_path, every=41), at_least=40)


def test_a_selection_of_hostile_pictures_is_read_or_refused(tmp_path):
    check(outcomes("pictures", tmp_path, every=31), at_least=25)


def test_a_selection_of_hostile_requests_is_answered_or_refused(tmp_path):
    pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")
    check(outcomes("space", tmp_path, every=23), at_least=25)


@pytest.mark.slow
def test_all_hostile_requests_are_answered_or_refused(tmp_path):
    pytest.importorskip("gradio", reason="the Space needs gradio: pip install -e '.[demo]'")
    check(outcomes("space", tmp_path), at_least=650)


@pytest.mark.slow
def test_all_hostile_pictures_are_read_or_refused(tmp_path):
    check(outcomes("pictures", tmp_path), at_least=750)


@pytest.mark.slow
def test_all_hostile_repositories_are_read_or_refused(tmp_path):
    check(outcomes("repositories", tmp_path), at_least=1500)
