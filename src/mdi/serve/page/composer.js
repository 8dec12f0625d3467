// The field that messages are written in. Enter sends, Shift+Enter begins a line.

export class Composer {
    #field;
    #send;
    #stop;
    #isBusy = false;

    constructor(form, { send, stop }) {
        this.#field = form.querySelector("textarea");
        this.#send = form.querySelector(".send");
        this.#stop = form.querySelector(".stop");
        this.#stop.addEventListener("click", () => {
            stop();
            this.focus();
        });
        this.#field.addEventListener("input", () => this.#fit());
        this.#field.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            form.requestSubmit();
        });
        form.addEventListener("submit", (event) => {
            event.preventDefault();
            const text = this.#field.value.trim();
            if (text === "" || this.#isBusy) return;
            this.#field.value = "";
            this.#fit();
            send(text);
        });
    }

    setBusy(isBusy) {
        this.#isBusy = isBusy;
        this.#send.hidden = isBusy;
        this.#stop.hidden = !isBusy;
    }

    focus() {
        // A phone would show its keyboard.
        if (matchMedia("(pointer: fine)").matches) this.#field.focus();
    }

    /** As high as its text, up to what the style sheet allows. */
    #fit() {
        this.#field.style.height = "auto";
        this.#field.style.height = `${this.#field.scrollHeight}px`;
    }
}
