"""HTTP for users: requests become samples, tokens become events, in the forms of OpenAI's API."""
