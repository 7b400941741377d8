import { UnreadableError, type XdrReader } from "./xdr.js";

/** Facts by their names, as libvirt gives them about a job. Numbers beyond 2^53 - 1 are left out. */
export type TypedParams = ReadonlyMap<string, number | string | boolean>;

/**
 * Reads `remote_typed_param<>`: each is a name, the number of its type (`virTypedParameterType`) and a value
 * of that type. Pure.
 */
export function typedParams(answer: XdrReader): TypedParams {
  const params = new Map<string, number | string | boolean>();
  answer.list(() => {
    const name = answer.string();
    const value = paramOf(answer);
    if (value !== undefined) params.set(name, value);
  });
  return params;
}

function paramOf(answer: XdrReader): number | string | boolean | undefined {
  const type = answer.int();
  switch (type) {
    case 1:
      return answer.int();
    case 2:
      return answer.uint();
    case 3:
      return safe(answer.bigint());
    case 4:
      return safe(BigInt.asUintN(64, answer.bigint()));
    case 5:
      return answer.double();
    case 6:
      return answer.int() !== 0;
    case 7:
      return answer.string();
    default:
      throw new UnreadableError(`a parameter of type ${type}`);
  }
}

function safe(value: bigint): number | undefined {
  return value >= Number.MIN_SAFE_INTEGER && value <= Number.MAX_SAFE_INTEGER ? Number(value) : undefined;
}
