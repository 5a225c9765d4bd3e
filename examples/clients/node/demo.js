/** What the examples share: where the API is, and asking it several times. */

export const baseURL = (process.env.TIERGATE_URL ?? "http://127.0.0.1:10000").replace(/\/+$/, "");
export const apiKey = process.env.TIERGATE_API_KEY ?? "sk-demo-basic";

/**
 * Ask as often as the command line says, 3 times by default.
 *
 * Each call is a line of JSON on standard output, with the time it took. The
 * first error ends the program with status 1, a wrong command line with 2.
 *
 * @param {() => Promise<string>} ask
 */
export async function askOften(ask) {
  const calls = process.argv[2] ?? "3";
  if (!/^[1-9]\d*$/.test(calls)) {
    console.error(`"${calls}": want how many calls to make, a whole number of 1 or more`);
    process.exitCode = 2;
    return;
  }
  for (let call = 1; call <= Number(calls); call++) {
    const line = { call };
    const began = performance.now();
    try {
      line.answer = await ask();
    } catch (error) {
      line.error = error.constructor.name;
      line.message = error.cause ? `${error.message}: ${error.cause.message}` : error.message;
      process.exitCode = 1;
    }
    line.seconds = Math.round(performance.now() - began) / 1000;
    console.log(JSON.stringify(line));
    if (line.error) return;
  }
}
