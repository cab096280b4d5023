"""`python -m hf_vq` is `hf-vq`."""

from hf_vq_cli import main

if __name__ == "__main__":
    main()
