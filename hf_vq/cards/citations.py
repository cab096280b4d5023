"""The works whose methods a model can use, as BibTeX, and the links by which the Hub finds a model's papers."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ARXIV = re.compile(
    r"(?:\beprint\s*=\s*[{\"]\s*(?:arXiv:)?|arXiv[: ]\s*|arxiv\.org/(?:abs|pdf)/)(\d{4}\.\d{4,5})", re.IGNORECASE
)
_TITLE = re.compile(r"\btitle\s*=\s*[{\"](.*?)[}\"]\s*(?:,|\n\s*})", re.IGNORECASE | re.DOTALL)


def paper_links(entries: Iterable[str]) -> list[str]:
    """Markdown links to the works of BibTeX entries on arXiv; an entry that names no arXiv id has none.

    The Hub lists a model on the pages of the papers that its card links to.
    """
    links = []
    for entry in entries:
        number, title = _ARXIV.search(entry), _TITLE.search(entry)
        if number is not None:
            text = " ".join(re.sub(r"[{}]", "", title[1]).split()) if title else f"arXiv {number[1]}"
            links.append(f"[{text}](https://arxiv.org/abs/{number[1]})")
    return links


CITATIONS = {
    "huh": """@inproceedings{huh2023straightening,
  title     = {Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized Networks},
  author    = {Huh, Minyoung and Cheung, Brian and Agrawal, Pulkit and Isola, Phillip},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  eprint    = {2305.08842},
  archivePrefix = {arXiv}
}""",  # noqa: E501
    "oord": """@inproceedings{oord2017neural,
  title     = {Neural Discrete Representation Learning},
  author    = {van den Oord, Aaron and Vinyals, Oriol and Kavukcuoglu, Koray},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2017},
  eprint    = {1711.00937},
  archivePrefix = {arXiv}
}""",
    "vqgan": """@inproceedings{esser2021taming,
  title     = {Taming Transformers for High-Resolution Image Synthesis},
  author    = {Esser, Patrick and Rombach, Robin and Ommer, Bj{\\"o}rn},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021},
  eprint    = {2012.09841},
  archivePrefix = {arXiv}
}""",
    "magvit2": """@article{luo2024openmagvit2,
  title   = {Open-{MAGVIT2}: An Open-Source Project Toward Democratizing Auto-regressive Visual Generation},
  author  = {Luo, Zhuoyan and Shi, Fengyuan and Ge, Yixiao and Yang, Yujiu and Wang, Limin and Shan, Ying},
  journal = {arXiv preprint arXiv:2409.04410},
  year    = {2024}
}""",
    "sqvae": """@inproceedings{takida2022sqvae,
  title     = {{SQ-VAE}: Variational {Bayes} on Discrete Representation with Self-annealed Stochastic Quantization},
  author    = {Takida, Yuhta and Shibuya, Takashi and Liao, WeiHsiang and Lai, Chieh-Hsin and Ohmura, Junki and
               Uesaka, Toshimitsu and Murata, Naoki and Takahashi, Shusuke and Kumakura, Toshiyuki and
               Mitsufuji, Yuki},
  booktitle = {International Conference on Machine Learning},
  year      = {2022},
  eprint    = {2205.07547},
  archivePrefix = {arXiv}
}""",
    "residual": """@inproceedings{lee2022autoregressive,
  title     = {Autoregressive Image Generation using Residual Quantization},
  author    = {Lee, Doyup and Kim, Chiheon and Kim, Saehoon and Cho, Minsu and Han, Wook-Shin},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  eprint    = {2203.01941},
  archivePrefix = {arXiv}
}""",
    "rotation": """@article{fifty2024restructuring,
  title   = {Restructuring Vector Quantization with the Rotation Trick},
  author  = {Fifty, Christopher and Junkins, Ronald G. and Duan, Dennis and Iger, Aniketh and Liu, Jerry W. and
             Amid, Ehsan and Thrun, Sebastian and R{\\'e}, Christopher},
  journal = {arXiv preprint arXiv:2410.06424},
  year    = {2024}
}""",
    "diveq": """@article{vali2025diveq,
  title   = {{DiVeQ}: Differentiable Vector Quantization Using the Reparameterization Trick},
  author  = {Vali, Mohammad Hassan and B{\\"a}ckstr{\\"o}m, Tom and Solin, Arno},
  journal = {arXiv preprint arXiv:2509.26469},
  year    = {2025}
}""",
    "wasserstein": """@article{fang2025enhancing,
  title   = {Enhancing Vector Quantization with Distributional Matching: A Theoretical and Empirical Study},
  author  = {Fang, Xianghong and Guo, Litao and Chen, Hengchao and Zhang, Yuxuan and Xia, Xiaofan and Song, Dingjie and
             Liu, Yexin and Wang, Hao and Yang, Harry and Yuan, Yuan and Sun, Qiang},
  journal = {arXiv preprint arXiv:2506.15078},
  year    = {2025}
}""",
    "nsvq": """@article{vali2022nsvq,
  title   = {{NSVQ}: Noise Substitution in Vector Quantization for Machine Learning},
  author  = {Vali, Mohammad Hassan and B{\\"a}ckstr{\\"o}m, Tom},
  journal = {IEEE Access},
  volume  = {10},
  year    = {2022}
}""",
    "ema": """@inproceedings{razavi2019generating,
  title     = {Generating Diverse High-Fidelity Images with {VQ-VAE-2}},
  author    = {Razavi, Ali and van den Oord, Aaron and Vinyals, Oriol},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019},
  eprint    = {1906.00446},
  archivePrefix = {arXiv}
}""",
    "kmeans": """@inproceedings{arthur2007kmeans,
  title     = {k-means++: The Advantages of Careful Seeding},
  author    = {Arthur, David and Vassilvitskii, Sergei},
  booktitle = {ACM-SIAM Symposium on Discrete Algorithms},
  year      = {2007}
}""",
    "l2": """@inproceedings{yu2022vector,
  title     = {Vector-quantized Image Modeling with Improved {VQGAN}},
  author    = {Yu, Jiahui and Li, Xin and Koh, Jing Yu and Zhang, Han and Pang, Ruoming and Qin, James and Ku,
               Alexander and Xu, Yuanzhong and Baldridge, Jason and Wu, Yonghui},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  eprint    = {2110.04627},
  archivePrefix = {arXiv}
}""",
    "maskgit": """@inproceedings{chang2022maskgit,
  title     = {{MaskGIT}: Masked Generative Image Transformer},
  author    = {Chang, Huiwen and Zhang, Han and Jiang, Lu and Liu, Ce and Freeman, William T.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  eprint    = {2202.04200},
  archivePrefix = {arXiv}
}""",
    "lpips": """@inproceedings{zhang2018unreasonable,
  title     = {The Unreasonable Effectiveness of Deep Features as a Perceptual Metric},
  author    = {Zhang, Richard and Isola, Phillip and Efros, Alexei A. and Shechtman, Eli and Wang, Oliver},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2018},
  eprint    = {1801.03924},
  archivePrefix = {arXiv}
}""",
}
