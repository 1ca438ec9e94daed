"""Everything that has a name has a publication, and every publication is BibTeX."""

import re

import pytest

import psld_jax as pj
from psld_jax import build
from psld_jax.report import _bibliography as bibliography
from psld_jax.sampling.adaptive import SOLVERS

NETWORKS = [name for name in build.MODELS if name not in ("mixture", "saved")]


def keys(text):
    return re.findall(r"^@\w+\{([\w+]+),$", text, re.MULTILINE)


@pytest.mark.parametrize("name", [*pj.integrators.available(), *SOLVERS, *pj.sde.available(), *NETWORKS])
def test_every_name_has_a_publication_of_its_authors(name):
    package, *others = keys(pj.citation(name))
    assert package == "psld_jax" and others and set(others) <= set(bibliography.ENTRIES)
    if name in pj.integrators.available() and "Crowson" not in pj.integrators.base.source(name):
        said = pj.integrators.base.source(name)
        first = re.match(r"\w+", said).group().lower()
        assert others[0].startswith(first) and str(bibliography.ENTRIES[others[0]].year) in said


def test_every_publication_is_well_formed_bibtex_and_of_something():
    of_names = [bibliography.SOURCES, bibliography.INTEGRATORS, bibliography.PATHS, bibliography.NETWORKS]
    of_names.append(bibliography.POSTERIORS)
    used = {key for table in of_names for keys in table.values() for key in keys} | set(bibliography.ADAPTIVE)
    used |= set(bibliography.ANALYTIC_START)
    assert used == set(bibliography.ENTRIES)
    for key, entry in bibliography.ENTRIES.items():
        text = entry.bibtex(key)
        assert text.count("{") == text.count("}") and str(entry.year) in key
        assert re.fullmatch(rf"@\w+\{{{key},\n(  \w+ = \{{.+\}},\n)+\}}", text)
        fields = dict(re.findall(r"^  (\w+) = \{(.+)\},$", text, re.MULTILINE))
        assert {"title", "author", "year"} <= set(fields)
        # An arXiv number begins with a year: that of the publication, up to two before, or one after (a thesis).
        if "eprint" in fields:
            assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"]) and fields["archivePrefix"] == "arXiv"
            assert -1 <= entry.year - (2000 + int(fields["eprint"][:2])) <= 2


def test_what_was_used_is_cited_once_each(few_digits):
    text = pj.citation("ROBA", pj.integrators.get("reduced_oba"), pj.Setting("deis"), few_digits, "psld")
    assert keys(text) == ["psld_jax", "pandey2024efficient", "zhang2023fast", "pandey2023complete"]
    assert keys(pj.citation(pj.load("mnist"))) == ["psld_jax", "song2021score", "pandey2023complete"]
    assert keys(pj.citation()) == ["psld_jax"]
    assert keys(pj.citation(pj.Setting("deis", t_start=0.4)))[1:] == ["zhang2023fast", "dockhorn2022genie"]


def test_a_learned_solver_is_cited_for_what_it_was_learned_from(digits_model):
    solvers = {row.nfe: row.setting for row in digits_model.tuned if row.setting.solver is not None}
    for setting, led in ((solvers[5], ["dockhorn2022genie"]), (solvers[10], [])):
        expected = ["psld_jax", "zhang2023fast", "zhang2023gddim", *led]
        assert keys(pj.citation(setting)) == keys(pj.citation(setting.solver)) == expected


@pytest.mark.parametrize("thing", [None, 3, "", ("ddim",), b"ddim"])
def test_what_has_no_publication_is_refused_in_one_line(thing):
    with pytest.raises(ValueError, match="unknown sampler, path or network") as caught:
        pj.citation(thing)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_default_sampler_and_posteriors_are_cited_by_their_names():
    assert keys(pj.citation("auto")) == keys(pj.citation("predictor_corrector"))
    assert keys(pj.citation("pigdm", "dps"))[1:] == ["song2023pigdm", "chung2023dps"]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="predictor_corrector"):
        pj.citation("predictor_corector")
