from pyg_se3.cli.train import main

main()
