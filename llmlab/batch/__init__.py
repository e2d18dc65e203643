"""The providers' own Batch APIs: half price, up to 24 hours, found again by an id."""
