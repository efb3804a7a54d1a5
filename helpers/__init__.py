"""What the notebooks lean on: six rooms, data, nets, training, evaluation, plots and runs."""
