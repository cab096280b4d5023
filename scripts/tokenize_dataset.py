from hf_vq.commands.tokenize_dataset import main

if __name__ == "__main__":
    main()
