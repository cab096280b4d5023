from hf_vq.commands.train_generator import main

if __name__ == "__main__":
    main()
