"""The works whose methods a model can use, as BibTeX."""

CITATIONS = {
    "huh": """@inproceedings{huh2023straightening,
  title     = {Straightening Out the Straight-Through Estimator: Overcoming Optimization Challenges in Vector Quantized Networks},
  author    = {Huh, Minyoung and Cheung, Brian and Agrawal, Pulkit and Isola, Phillip},
  booktitle = {International Conference on Machine Learning},
  year      = {2023}
}""",  # noqa: E501
    "oord": """@inproceedings{oord2017neural,
  title     = {Neural Discrete Representation Learning},
  author    = {van den Oord, Aaron and Vinyals, Oriol and Kavukcuoglu, Koray},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2017}
}""",
    "vqgan": """@inproceedings{esser2021taming,
  title     = {Taming Transformers for High-Resolution Image Synthesis},
  author    = {Esser, Patrick and Rombach, Robin and Ommer, Bj{\\"o}rn},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}""",
    "sqvae": """@inproceedings{takida2022sqvae,
  title     = {{SQ-VAE}: Variational {Bayes} on Discrete Representation with Self-annealed Stochastic Quantization},
  author    = {Takida, Yuhta and Shibuya, Takashi and Liao, WeiHsiang and Lai, Chieh-Hsin and Ohmura, Junki and
               Uesaka, Toshimitsu and Murata, Naoki and Takahashi, Shusuke and Kumakura, Toshiyuki and
               Mitsufuji, Yuki},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}""",
    "residual": """@inproceedings{lee2022autoregressive,
  title     = {Autoregressive Image Generation using Residual Quantization},
  author    = {Lee, Doyup and Kim, Chiheon and Kim, Saehoon and Cho, Minsu and Han, Wook-Shin},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}""",
    "rotation": """@article{fifty2024restructuring,
  title   = {Restructuring Vector Quantization with the Rotation Trick},
  author  = {Fifty, Christopher and Junkins, Ronald G. and Duan, Dennis and Iger, Aniketh and Liu, Jerry W. and
             Amid, Ehsan and Thrun, Sebastian and R{\\'e}, Christopher},
  journal = {arXiv preprint arXiv:2410.06424},
  year    = {2024}
}""",
    "ema": """@inproceedings{razavi2019generating,
  title     = {Generating Diverse High-Fidelity Images with {VQ-VAE-2}},
  author    = {Razavi, Ali and van den Oord, Aaron and Vinyals, Oriol},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019}
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
  year      = {2022}
}""",
    "maskgit": """@inproceedings{chang2022maskgit,
  title     = {{MaskGIT}: Masked Generative Image Transformer},
  author    = {Chang, Huiwen and Zhang, Han and Jiang, Lu and Liu, Ce and Freeman, William T.},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022}
}""",
    "lpips": """@inproceedings{zhang2018unreasonable,
  title     = {The Unreasonable Effectiveness of Deep Features as a Perceptual Metric},
  author    = {Zhang, Richard and Isola, Phillip and Efros, Alexei A. and Shechtman, Eli and Wang, Oliver},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2018}
}""",
}
