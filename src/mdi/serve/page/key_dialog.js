// Asks for the key of a server that has some. It is kept in this tab alone.

export class KeyDialog {
    #dialog;
    #field;
    #sentence;
    #pending = null; // one question at a time: the chat and the ring may both be refused

    constructor(dialog, server) {
        this.#dialog = dialog;
        this.#field = dialog.querySelector("input");
        this.#sentence = dialog.querySelector(".sentence");
        dialog.querySelector("form").addEventListener("submit", (event) => {
            event.preventDefault();
            server.useKey(this.#field.value);
            dialog.close("given");
        });
        dialog.querySelector(".cancel").addEventListener("click", () => dialog.close(""));
    }

    /** Resolves to whether the user gave a key. */
    ask(sentence) {
        this.#sentence.textContent = sentence;
        this.#pending ??= new Promise((resolve) => {
            this.#field.value = "";
            this.#dialog.returnValue = "";
            this.#dialog.showModal();
            this.#dialog.addEventListener(
                "close",
                () => {
                    this.#pending = null;
                    resolve(this.#dialog.returnValue === "given");
                },
                { once: true },
            );
        });
        return this.#pending;
    }
}
