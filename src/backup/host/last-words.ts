/** Characters that are kept. */
const MOST = 4000;

/** The end of what a program prints while it runs, which says why it ended; however much it prints. */
export class LastWords {
  #text = "";

  get text(): string {
    return this.#text;
  }

  add(text: string): void {
    this.#text = (this.#text + text).slice(-MOST);
  }
}
