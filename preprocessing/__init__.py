"""Raw images and masks -> the data contract of `fedfms.data.manifest`; a data set is one file here."""
