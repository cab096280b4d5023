from hf_vq.commands.generate import main

if __name__ == "__main__":
    main()
