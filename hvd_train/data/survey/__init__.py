"""What `ddl data show` says about a data set. `python -m hvd_train.data.survey` writes it as JSON."""
