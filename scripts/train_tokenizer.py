from hf_vq.commands.train_tokenizer import main

if __name__ == "__main__":
    main()
