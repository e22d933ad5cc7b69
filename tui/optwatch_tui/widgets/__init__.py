"""What is drawn: own widgets over the line interface, since they cost a tenth of the general ones."""
