from hf_vq.commands.demo import main

if __name__ == "__main__":
    main()
