from hf_vq.commands.convert_checkpoint import main

if __name__ == "__main__":
    main()
