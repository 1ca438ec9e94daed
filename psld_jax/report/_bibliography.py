"""The publications behind methods, paths and networks, and the names that they belong to."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """One publication: ``kind`` of BibTeX entry, ``title``, ``author`` (all of them), ``year``; other ``fields``."""

    kind: str
    title: str
    author: str
    year: int
    fields: dict[str, str]

    def bibtex(self, key: str) -> str:
        """Return the entry as BibTeX."""
        values = {"title": f"{{{self.title}}}", "author": self.author, **self.fields, "year": str(self.year)}
        lines = "".join(f"  {name} = {{{value}}},\n" for name, value in values.items())
        return f"@{self.kind}{{{key},\n{lines}}}"


def _arxiv(number: str) -> dict[str, str]:
    return {"eprint": number, "archivePrefix": "arXiv"}


def _talk(title: str, author: str, venue: str, year: int, arxiv: str) -> Entry:
    return Entry("inproceedings", title, author, year, {"booktitle": venue, **_arxiv(arxiv)})


_ICLR = "International Conference on Learning Representations"
_NEURIPS = "Advances in Neural Information Processing Systems"
_ICML = "International Conference on Machine Learning"
_LU = "Cheng Lu and Yuhao Zhou and Fan Bao and Jianfei Chen and Chongxuan Li and Jun Zhu"

ENTRIES: dict[str, Entry] = {
    "pandey2024efficient": _talk(
        "Efficient Integrators for Diffusion Generative Models",
        "Kushagra Pandey and Maja Rudolph and Stephan Mandt",
        _ICLR,
        2024,
        "2310.07894",
    ),
    "pandey2023complete": _talk(
        "A Complete Recipe for Diffusion Generative Models",
        "Kushagra Pandey and Stephan Mandt",
        "IEEE/CVF International Conference on Computer Vision",
        2023,
        "2303.01748",
    ),
    "song2021score": _talk(
        "Score-Based Generative Modeling through Stochastic Differential Equations",
        "Yang Song and Jascha Sohl-Dickstein and Diederik P. Kingma and Abhishek Kumar and Stefano Ermon and Ben Poole",
        _ICLR,
        2021,
        "2011.13456",
    ),
    "song2021ddim": _talk(
        "Denoising Diffusion Implicit Models",
        "Jiaming Song and Chenlin Meng and Stefano Ermon",
        _ICLR,
        2021,
        "2010.02502",
    ),
    "karras2022elucidating": _talk(
        "Elucidating the Design Space of Diffusion-Based Generative Models",
        "Tero Karras and Miika Aittala and Timo Aila and Samuli Laine",
        _NEURIPS,
        2022,
        "2206.00364",
    ),
    "zhang2023fast": _talk(
        "Fast Sampling of Diffusion Models with Exponential Integrator",
        "Qinsheng Zhang and Yongxin Chen",
        _ICLR,
        2023,
        "2204.13902",
    ),
    "zhang2023gddim": _talk(
        "{gDDIM}: Generalized Denoising Diffusion Implicit Models",
        "Qinsheng Zhang and Molei Tao and Yongxin Chen",
        _ICLR,
        2023,
        "2206.05564",
    ),
    "zhao2023unipc": _talk(
        "{UniPC}: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models",
        "Wenliang Zhao and Lujia Bai and Yongming Rao and Jie Zhou and Jiwen Lu",
        _NEURIPS,
        2023,
        "2302.04867",
    ),
    "dockhorn2022genie": _talk(
        "{GENIE}: Higher-Order Denoising Diffusion Solvers",
        "Tim Dockhorn and Arash Vahdat and Karsten Kreis",
        _NEURIPS,
        2022,
        "2210.05475",
    ),
    "lu2022dpmsolver": _talk(
        "{DPM-Solver}: A Fast {ODE} Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
        _LU,
        _NEURIPS,
        2022,
        "2206.00927",
    ),
    "lu2022dpmsolverpp": Entry(
        "article",
        "{DPM-Solver++}: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
        _LU,
        2022,
        {"journal": "arXiv preprint arXiv:2211.01095", **_arxiv("2211.01095")},
    ),
    "xue2023sasolver": _talk(
        "{SA-Solver}: Stochastic {Adams} Solver for Fast Sampling of Diffusion Models",
        "Shuchen Xue and Mingyang Yi and Weijian Luo and Shifeng Zhang and Jiacheng Sun and Zhenguo Li and Zhi-Ming Ma",
        _NEURIPS,
        2023,
        "2309.05019",
    ),
    "xu2023restart": _talk(
        "Restart Sampling for Improving Generative Processes",
        "Yilun Xu and Mingyang Deng and Xiang Cheng and Yonglong Tian and Ziming Liu and Tommi Jaakkola",
        _NEURIPS,
        2023,
        "2306.14878",
    ),
    "crowson2022kdiffusion": Entry(
        "misc",
        "k-diffusion",
        "Katherine Crowson",
        2022,
        {"howpublished": "\\url{https://github.com/crowsonkb/k-diffusion}"},
    ),
    "kidger2021diffrax": Entry(
        "phdthesis",
        "On Neural Differential Equations",
        "Patrick Kidger",
        2021,
        {"school": "University of Oxford", **_arxiv("2202.02435")},
    ),
    "dockhorn2022score": _talk(
        "Score-Based Generative Modeling with Critically-Damped {Langevin} Diffusion",
        "Tim Dockhorn and Arash Vahdat and Karsten Kreis",
        _ICLR,
        2022,
        "2112.07068",
    ),
    "mou2021highorder": Entry(
        "article",
        "High-Order {Langevin} Diffusion Yields an Accelerated {MCMC} Algorithm",
        "Wenlong Mou and Yi-An Ma and Martin J. Wainwright and Peter L. Bartlett and Michael I. Jordan",
        2021,
        {"journal": "Journal of Machine Learning Research", "volume": "22", "number": "42", "pages": "1--41"},
    ),
    "nichol2021improved": _talk(
        "Improved Denoising Diffusion Probabilistic Models",
        "Alexander Quinn Nichol and Prafulla Dhariwal",
        _ICML,
        2021,
        "2102.09672",
    ),
    "ho2020denoising": _talk(
        "Denoising Diffusion Probabilistic Models",
        "Jonathan Ho and Ajay Jain and Pieter Abbeel",
        _NEURIPS,
        2020,
        "2006.11239",
    ),
    "lipman2023flow": _talk(
        "Flow Matching for Generative Modeling",
        "Yaron Lipman and Ricky T. Q. Chen and Heli Ben-Hamu and Maximilian Nickel and Matthew Le",
        _ICLR,
        2023,
        "2210.02747",
    ),
    "liu2023flow": _talk(
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        "Xingchao Liu and Chengyue Gong and Qiang Liu",
        _ICLR,
        2023,
        "2209.03003",
    ),
    "dhariwal2021diffusion": _talk(
        "Diffusion Models Beat {GANs} on Image Synthesis",
        "Prafulla Dhariwal and Alexander Nichol",
        _NEURIPS,
        2021,
        "2105.05233",
    ),
    "song2023pigdm": Entry(
        "inproceedings",
        "Pseudoinverse-Guided Diffusion Models for Inverse Problems",
        "Jiaming Song and Arash Vahdat and Morteza Mardani and Jan Kautz",
        2023,
        {"booktitle": _ICLR},
    ),
    "chung2023dps": _talk(
        "Diffusion Posterior Sampling for General Noisy Inverse Problems",
        "Hyungjin Chung and Jeongsol Kim and Michael T. McCann and Marc L. Klasky and Jong Chul Ye",
        _ICLR,
        2023,
        "2209.14687",
    ),
    "vonplaten2022diffusers": Entry(
        "misc",
        "Diffusers: State-of-the-Art Diffusion Models",
        "Patrick von Platen and Suraj Patil and Anton Lozhkov and Pedro Cuenca and Nathan Lambert and Kashif Rasul and "
        "Mishig Davaadorj and Dhruv Nair and Sayak Paul and William Berman and Yiyi Xu and Steven Liu and Thomas Wolf",
        2022,
        {"howpublished": "\\url{https://github.com/huggingface/diffusers}"},
    ),
}

#: By what an integrator says of its source.
SOURCES: dict[str, tuple[str, ...]] = {
    "Pandey et al., 2024": ("pandey2024efficient",),
    "Song et al., 2021": ("song2021score",),
    "Song, Meng & Ermon, 2021": ("song2021ddim",),
    "Ho, Jain & Abbeel, 2020": ("ho2020denoising",),
    "Karras et al., 2022": ("karras2022elucidating",),
    "Zhang & Chen, 2023": ("zhang2023fast",),
    "Zhao et al., 2023": ("zhao2023unipc",),
    "Lu et al., 2022": ("lu2022dpmsolver",),
    "Xue et al., 2023": ("xue2023sasolver",),
    "Xu et al., 2023": ("xu2023restart",),
    "Katherine Crowson, 2022": ("crowson2022kdiffusion",),
    "Dockhorn et al., 2022": ("dockhorn2022score",),
}

#: Integrators whose source has another publication of the same authors and year, or more than one.
INTEGRATORS: dict[str, tuple[str, ...]] = {
    **{f"dpm_solver_pp_{kind}": ("lu2022dpmsolverpp",) for kind in ("2m", "2s", "3m", "2m_sde")},
    "ancestral": ("song2021ddim", "zhang2023gddim"),
    "exponential_multistep": ("zhang2023fast", "zhang2023gddim"),
    "predictor_corrector": ("zhao2023unipc", "zhang2023gddim"),
    "exponential_runge_kutta": ("lu2022dpmsolver", "zhang2023gddim"),
}

PATHS: dict[str, tuple[str, ...]] = {
    "psld": ("pandey2023complete",),
    "cld": ("dockhorn2022score",),
    "third_order_langevin": ("mou2021highorder",),
    "vpsde": ("song2021score",),
    "vesde": ("song2021score",),
    "subvp": ("song2021score",),
    "edm": ("karras2022elucidating",),
    "cosine": ("nichol2021improved",),
    "flow": ("lipman2023flow", "liu2023flow"),
    "discrete": ("ho2020denoising",),
}

NETWORKS: dict[str, tuple[str, ...]] = {
    "ncsnpp": ("song2021score",),
    "ncsnpp_clf": ("song2021score", "dhariwal2021diffusion"),
    "edm": ("karras2022elucidating",),
    "unet2d": ("vonplaten2022diffusers",),
}

#: Of the ways to agree with a measurement that guide through the network.
POSTERIORS: dict[str, tuple[str, ...]] = {
    "pigdm": ("song2023pigdm",),
    "dps": ("chung2023dps",),
}

#: Of the analytical first step.
ANALYTIC_START = ("dockhorn2022genie",)
#: Every adaptive solver.
ADAPTIVE = ("kidger2021diffrax",)
