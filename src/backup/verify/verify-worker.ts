/** The script of the threads that `verify-threads.ts` starts. */
import { answerQuestions } from "../threads/thread-side.js";
import { VerifyService } from "./verify-service.js";

answerQuestions(new VerifyService());
