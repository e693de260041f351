"""The nine methods that TQL is compared with. Each has a file of its own, with its own network;
what several of them share is in `networks`."""
